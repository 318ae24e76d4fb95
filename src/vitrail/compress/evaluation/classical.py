"""The classical codecs beside ours, through Pillow: real files, their headers included."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vitrail.compress.errors import CodecError


@dataclass(frozen=True)
class ClassicalCodec:
    """One of Pillow's codecs, with what `vitrail.compress.Codec` has as well: compress, decompress, name, qualities."""

    name: str
    """As in `CLASSICAL`."""
    format: str
    """Pillow's name of the format."""
    qualities: tuple[int, ...]
    """The settings to evaluate at, from few bytes to many."""
    options: Callable[[Image.Image, int], Mapping[str, Any]]
    """A picture and a quality -> arguments of `Image.save`."""

    def compress(self, image: Image.Image, quality: int) -> bytes:
        """The file of an RGB picture.

        Raises:
            CodecError: the codec cannot hold the picture, or this Pillow was built without it.
        """
        stream = io.BytesIO()
        try:
            image.save(stream, self.format, **self.options(image, quality))
        except (OSError, ValueError, KeyError) as error:  # Pillow's ways to say no
            raise CodecError(
                f"{self.name} cannot compress a picture of {image.width} x {image.height} pixels at quality {quality} "
                f"({error}); leave it out of the comparison."
            ) from None
        return stream.getvalue()

    def decompress(self, data: bytes) -> Image.Image:
        """The picture in a file, RGB."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return image.convert("RGB")


def _jpeg(image: Image.Image, quality: int) -> Mapping[str, Any]:
    return {"quality": quality, "subsampling": "4:2:0", "optimize": True}


def _jpeg2000(image: Image.Image, quality: int) -> Mapping[str, Any]:
    """Irreversible wavelets at `quality` hundredths of a bit a pixel; without `mct` colours would be coded apart."""
    levels = min(6, min(image.size).bit_length())  # OpenJPEG refuses to halve a side of 1
    return {
        "quality_mode": "rates",
        "quality_layers": [2400 / quality],
        "irreversible": True,
        "mct": 1,
        "num_resolutions": levels,
    }


def _webp(image: Image.Image, quality: int) -> Mapping[str, Any]:
    return {"quality": quality, "method": 6}


def _avif(image: Image.Image, quality: int) -> Mapping[str, Any]:
    return {"quality": quality, "max_threads": 1}


CLASSICAL: dict[str, ClassicalCodec] = {
    codec.name: codec
    for codec in (
        ClassicalCodec("jpeg", "JPEG", (1, 4, 7, 10, 15, 25, 40, 60, 80), _jpeg),
        ClassicalCodec("jpeg2000", "JPEG2000", (5, 10, 15, 20, 30, 50, 75, 100), _jpeg2000),
        ClassicalCodec("webp", "WEBP", (0, 2, 5, 10, 20, 40, 60, 80), _webp),
        ClassicalCodec("avif", "AVIF", (5, 10, 20, 30, 40, 50, 60), _avif),
    )
}
