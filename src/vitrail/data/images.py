"""Image files to RGB pictures, whatever the file holds."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from vitrail.data.corrupt import CorruptSample
from vitrail.errors import FileError

SUFFIXES = frozenset(
    {"avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm"}
    | {"png", "pnm", "ppm", "tga", "tif", "tiff", "webp"}
)


class Picture(NamedTuple):
    """A picture and what had to be done to it.

    Attributes:
        image: RGB, 8 bits, upright.
        notes: what was lost on the way, a sentence each; mostly none.
    """

    image: Image.Image
    notes: tuple[str, ...]


def read_image(
    source: str | Path | IO[bytes],
    *,
    name: str | None = None,
    at_least: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """The picture in a file as 8-bit RGB, upright.

    The EXIF orientation is applied; transparency is laid over `background`; of an animation, the first frame is read.
    16-bit grey is divided by 257, so that white stays white; 32-bit and floating-point pictures have no agreed range:
    integers within 0..65535 count as 16 bits, floats within 0..1 as they are, others are stretched from their least
    to their greatest value. Colour profiles are left alone, as in the pipelines that published weights were trained
    with.

    Args:
        source: a path or a file opened in binary mode.
        name: what errors call the file; by default its path.
        at_least: large JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size, much faster, as long as their short side
            stays at least this many pixels.
        background: what shows through transparent pixels.

    Raises:
        CorruptSample: there is no such file, or it is no image, damaged, or so large that Pillow refuses it.
    """
    with _opened(source, name) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        return _to_rgb(_upright(image), background)


def read_picture(
    source: str | Path | IO[bytes],
    *,
    name: str | None = None,
    most: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """The same for pictures that people will look at again: colours of other profiles become sRGB, losses are noted.

    Args:
        source, name, background: as for `read_image`.
        most: pixels; a larger picture is refused before it is decoded.

    Raises:
        CorruptSample: as `read_image`, or the picture has more than `most` pixels.
    """
    with _opened(source, name) as image:
        if most is not None and image.width * image.height > most:
            raise ValueError(f"it has {image.width} x {image.height} pixels, and {most:,} is the limit")
        notes, deep = [], _has_16_bits(image)
        image.load()
        upright = _upright(image)
        frames = _count_frames(image)
        if frames > 1:
            notes.append(f"of its {frames} frames the first was taken")
        alpha = _alpha(upright)
        if alpha is not None and alpha.getextrema()[0] != 255:
            notes.append("its transparent parts were laid over the colour #{:02x}{:02x}{:02x}".format(*background))
        if deep or _is_integer(upright):
            notes.append(f"its 16 bits a {'pixel' if _is_integer(upright) else 'channel'} became 8")
        profile = upright.info.get("icc_profile")
        if profile and upright.mode not in ("LAB", "F"):  # the one is absolute, for the other no profile is made
            converted = _to_srgb(upright, profile)
            if converted is None:
                notes.append("its colour profile cannot be used and was left out")
            upright = converted or upright
        return Picture(_to_rgb(upright, background), tuple(notes))


def read_values(source: str | Path | IO[bytes], *, name: str | None = None) -> np.ndarray:
    """The numbers of a picture of one channel as they are in the file, such as depths: [H, W], upright.

    They are uint8, uint16, int32 or float32. Colour becomes grey of 8 bits; of an animation, the first frame is read.

    Args:
        source, name: as for `read_image`.

    Raises:
        CorruptSample: as `read_image`.
    """
    with _opened(source, name) as image:
        image.load()
        upright = _upright(image)
        if upright.mode.startswith("I;16"):
            return np.asarray(upright).astype(np.uint16)  # in the machine's order of bytes
        return np.array(upright if upright.mode in ("L", "I", "F") else upright.convert("L"))


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the picture in a file as it stands upright, without decoding it.

    Raises:
        CorruptSample: there is no such file, or it is no image.
    """
    with _opened(path, None) as image:
        lying = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations that turn by a quarter
        return (image.width, image.height) if lying else (image.height, image.width)


@contextmanager
def _opened(source: str | Path | IO[bytes], name: str | None) -> Iterator[Image.Image]:
    """The image in a file, not yet decoded; whatever goes wrong in the block is an error of that file."""
    name = name or str(source if isinstance(source, str | Path) else getattr(source, "name", "a picture"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and of sizes below Pillow's limit: neither is an error
            if isinstance(source, str | Path) and Path(source).is_fifo():  # Pillow would wait for a writer
                raise ValueError("it is a pipe, not a file")
            with Image.open(source) as image:
                yield image
    except FileNotFoundError:
        raise CorruptSample(name, "there is no such file") from None
    except UnidentifiedImageError:
        raise CorruptSample(name, "it is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise CorruptSample(name, f"it has more than {limit:,} pixels, the limit of Pillow") from None
    except Exception as error:  # Pillow's decoders answer damaged files with errors of nearly every built-in type
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CorruptSample(name, reason.rstrip(".") or type(error).__name__) from None


def _count_frames(image: Image.Image) -> int:
    """1 where the file is damaged behind its first frame, which is all that is taken of it."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # of nearly every built-in type, as in `_opened`
        return 1


def _has_16_bits(image: Image.Image) -> bool:
    """Whether an image that is not yet decoded has 16 bits a channel; of colour, Pillow keeps the upper 8."""
    tiles = getattr(image, "tile", ())  # of image files alone
    # BMP's "BGR;16" has 16 bits for all channels together.
    return any(re.search("(?<!BGR);16", str(args)) or (codec == "ppm" and args[1] > 255) for codec, _, _, args in tiles)


def _is_integer(image: Image.Image) -> bool:
    """Whether it is grey of 16 or 32 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _alpha(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, 0..255; None: all of them are, for nothing in the file says otherwise."""
    if not image.has_transparency_data:
        return None
    if _is_integer(image):  # one value is transparent, and Pillow would compare it with 8 bits
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB, its transparency kept; None: the profile is damaged, or of another kind of picture."""
    alpha = _alpha(image)
    if image.mode not in ("L", "RGB", "CMYK") and not image.mode.startswith("I"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # damaged EXIF data, of many kinds, beside a picture that has just been decoded
        return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if _is_integer(image):
        alpha = _alpha(image)
        image = _integers_to_grey(np.asarray(image).astype(np.int64))
        if alpha is not None:
            image.putalpha(alpha)
    elif image.mode == "F":
        image = _floats_to_grey(np.asarray(image))
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _integers_to_grey(values: np.ndarray) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        return _floats_to_grey(values.astype(np.float64))
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _floats_to_grey(values: np.ndarray) -> Image.Image:
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    least, greatest = float(values.min()), float(values.max())
    if least < 0 or greatest > 1:
        values = (values - least) / max(greatest - least, np.finfo(np.float64).tiny)
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sorts names as people number them: runs of digits compare as numbers, the rest without regard to case.

    "2" comes before "10", "img9" before "img10"; names that differ in nothing else compare as plain text.
    """
    parts = re.split("0*([0-9]+)", name.casefold())  # texts, and numbers between them
    # Of numbers the longer one is larger; int would refuse thousands of digits.
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)], name


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, known by their suffixes, in natural order.

    Raises:
        FileError: the folder cannot be read.
    """
    return [Path(folder, name) for name in image_names(folder, recursive)]


def image_names(folder: str | Path, recursive: bool = False) -> Iterator[str]:
    """The paths of a folder's images relative to it, as `walk` gives those of all files.

    Raises:
        FileError: a folder cannot be read.
    """
    return filter(is_image, walk(folder, recursive))


def walk(folder: str | Path, recursive: bool = True) -> Iterator[str]:
    """The paths of a folder's files relative to it: its own first, then folder by folder, in natural order.

    Hidden files and folders are passed over; links are followed, except back into a folder that they lie in.

    Raises:
        FileError: a folder cannot be read.
    """
    yield from _walk(Path(folder), "", recursive, tuple(Path(folder).resolve().parents))


def _walk(folder: Path, prefix: str, recursive: bool, above: tuple[Path, ...]) -> Iterator[str]:
    files, folders = _scan(folder)
    yield from (prefix + name for name in files)
    if recursive:
        above = (*above, folder.resolve())
        for name in folders:
            if (folder / name).resolve() not in above:
                yield from _walk(folder / name, f"{prefix}{name}/", recursive, above)


def scan(folder: str | Path) -> tuple[list[str], list[str]]:
    """The names of the images and of the folders in a folder, hidden ones passed over, each in natural order.

    Raises:
        FileError: the folder cannot be read.
    """
    files, folders = _scan(folder)
    return list(filter(is_image, files)), folders


def _scan(folder: str | Path) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise FileError(f"Cannot read the folder {folder}: {error.strerror}; check its path and its rights.") from None
    return sorted(files, key=natural_key), sorted(folders, key=natural_key)


def is_image(name: str) -> bool:
    """Whether a name has the suffix of an image."""
    return name.rpartition(".")[2].lower() in SUFFIXES
