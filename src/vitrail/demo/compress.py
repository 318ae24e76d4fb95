"""The codec on bundled pictures: several qualities, a tweet, the beginning of a file, a damaged file, and a report."""

import time
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from vitrail.compress import Codec, CodecError
from vitrail.compress.coding.text import TWEET, to_text
from vitrail.data.images import list_images, read_image
from vitrail.demo.report import Picture, Section, check_folder, write_report
from vitrail.files import atomic_path, write_text
from vitrail.metrics.reconstruction import ms_ssim, psnr

SCENES = Path(__file__).parent / "scenes"

_TWEETED, _CUT = "tree", "temple"
_TWEET_SIDE = 256
_JPEG_QUALITY = 1  # the lowest that there is


class Measured(NamedTuple):
    """A picture made smaller, and what became of it."""

    image: Image.Image
    size: int
    """Bytes."""
    bits_per_pixel: float
    psnr: float
    """In dB."""
    ms_ssim: float

    def caption(self, name: str) -> str:
        """One line for a person."""
        quality = f"{self.psnr:.1f} dB, MS-SSIM {self.ms_ssim:.3f}"
        return f"{name}: {self.size:,} bytes, {self.bits_per_pixel:.3f} bits a pixel, {quality}"


def run_demo(output: str | Path, model: str | Path | None = None) -> int:
    """Writes compressed pictures, the pictures that became of them, and `report.html` to the folder `output`.

    Args:
        output: made if it is not there.
        model: a codec, as `Codec.load` takes it.

    Raises:
        VitrailError: `output` holds something other than an earlier demo, or there is no such codec.
    """
    began = time.perf_counter()
    folder = Path(output)
    scenes = {path.stem: read_image(path) for path in list_images(SCENES)}
    show = _Folder(folder, {f"{name}." for name in scenes} | {"tweet.", "prefix.", "damaged."})
    codec = Codec.load(model)
    qualities = sorted({1, 2, 4, codec.autoencoder.parts})
    qualities = [quality for quality in qualities if quality <= codec.autoencoder.parts]

    rows, files, verdicts = [], {}, []
    for name, original in scenes.items():
        pictures = [show.add(f"{name}.original", original, f"{name}: the original, {_size(original)}")]
        for quality in qualities:
            print(f"Compressing {name} at quality {quality} ...", flush=True)
            data = codec.compress(original, quality)
            files[name, quality] = show.save(f"{name}.quality_{quality}.vtr", data)
            made = _measure(original, codec.decompress(data), len(data))
            pictures.append(show.add(f"{name}.quality_{quality}", made.image, made.caption(f"quality {quality}")))
            verdicts.append((quality, made))
        jpeg = _jpeg(original)
        pictures.append(show.add(f"{name}.jpeg", jpeg.image, jpeg.caption("JPEG, as small as it gets")))
        rows.append(pictures)
        verdicts.append((0, jpeg))

    sections = [
        Section("Qualities", "One model, several rates: the more of each patch's indices are sent, the better.", rows),
        _tweet(codec, scenes[_TWEETED], show),
        _prefixes(codec, scenes[_CUT], files[_CUT, qualities[-1]], show),
        _damaged(codec, scenes[_CUT], files[_CUT, qualities[-1]], show),
    ]
    seconds = time.perf_counter() - began
    lines = [_mean(f"quality {quality}", [made for q, made in verdicts if q == quality]) for quality in qualities]
    lines.append(_mean("JPEG, as small as it gets", [made for q, made in verdicts if q == 0]))
    verdict = f"{codec.name}, {len(scenes)} pictures, {seconds:.0f} seconds. On average: {'; '.join(lines)}."
    write_report(folder / "report.html", "Pictures in few bytes", verdict, sections)
    print("\n" + "\n".join(f"{line[0].upper()}{line[1:]}" for line in lines))
    print(f"\nReport: {folder / 'report.html'}")
    print(f"Try it: vitrail decompress {folder / f'tree.quality_{qualities[0]}.vtr'} -o tree.png")
    return 0


def _tweet(codec: Codec, original: Image.Image, show: "_Folder") -> Section:
    small = original.resize((_TWEET_SIDE, _TWEET_SIDE), Image.Resampling.LANCZOS)
    texts = {quality: to_text(codec.compress(small, quality)) for quality in range(1, codec.autoencoder.parts + 1)}
    fitting = [quality for quality, text in texts.items() if len(text) <= TWEET]
    quality = max(fitting, default=1)
    text, data = texts[quality], codec.compress(small, quality)
    show.text("tweet.txt", text + "\n")
    made = _measure(small, codec.decompress(data), len(data))
    row = [
        show.add("tweet.original", small, f"the original, {_size(small)}"),
        show.add("tweet.picture", made.image, made.caption(f"{len(text)} characters")),
    ]
    words = f"{_size(small)} in {len(text)} characters, of the {TWEET} that a tweet may have (quality {quality})."
    return Section("A picture in a tweet", words, [row], text)


def _prefixes(codec: Codec, original: Image.Image, data: bytes, show: "_Folder") -> Section:
    stages = codec.inspect(data).total_stages
    row = []
    for stage in range(1, stages + 1):
        size = _shortest(codec, data, stage)
        made = _measure(original, codec.decode(data[:size]).image, size)
        row.append(show.add(f"prefix.stage_{stage}", made.image, made.caption(f"{stage} of {stages} stages")))
    text = "The first bytes of one file, cut after each stage; the masked image model guesses what has not arrived."
    return Section("The beginning of a file is a picture", text, [row])


def _damaged(codec: Codec, original: Image.Image, data: bytes, show: "_Folder") -> Section:
    wrong = bytearray(data)
    wrong[len(data) // 2] ^= 0xFF
    show.save("damaged.vtr", bytes(wrong))
    decoded = codec.decode(bytes(wrong))
    made = _measure(original, decoded.image, len(wrong))
    row = [show.add("damaged.picture", made.image, made.caption(f"{decoded.stages} stages are sound"))]
    text = f"One byte in the middle of the file is wrong. What vitrail says: {decoded.damage}"
    return Section("A damaged file", text, [row])


class _Folder:
    """The report's folder: only names that begin like the demo's own may be in it."""

    def __init__(self, folder: Path, beginnings: set[str]) -> None:
        earlier = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        check_folder(folder, {"report.html"} | {name for name in earlier if name.startswith(tuple(beginnings))})
        self.folder = folder

    def save(self, name: str, data: bytes) -> bytes:
        with atomic_path(self.folder / name) as temporary:
            temporary.write_bytes(data)
        return data

    def text(self, name: str, text: str) -> None:
        write_text(self.folder / name, text)

    def add(self, name: str, image: Image.Image, caption: str) -> Picture:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        self.save(f"{name}.png", buffer.getvalue())
        return Picture(f"{name}.png", caption)


def _shortest(codec: Codec, data: bytes, stage: int) -> int:
    """The fewest first bytes of a file in which its first `stage` stages can be read, by bisection."""
    few, many = 0, len(data)
    while many - few > 1:
        size = (few + many) // 2
        try:
            good = len(codec.inspect(data[:size]).stages) >= stage
        except CodecError:  # not even the first
            good = False
        few, many = (few, size) if good else (size, many)
    return many


def _measure(original: Image.Image, image: Image.Image, size: int) -> Measured:
    pair = [pil_to_tensor(picture)[None].double() / 255 for picture in (original, image)]
    bits = 8 * size / (original.width * original.height)
    return Measured(image, size, bits, float(psnr(*pair)), float(ms_ssim(*pair)))


def _jpeg(original: Image.Image) -> Measured:
    buffer = BytesIO()
    original.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:0", optimize=True)
    return _measure(original, Image.open(buffer).convert("RGB"), buffer.tell())


def _mean(name: str, all_made: list[Measured]) -> str:
    def mean(field: str) -> float:
        return sum(getattr(made, field) for made in all_made) / len(all_made)

    return f"{name} {mean('bits_per_pixel'):.3f} bits a pixel and {mean('psnr'):.1f} dB"


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height} pixels"
