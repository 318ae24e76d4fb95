"""Random crops that several senses can share, and erasing; everything random comes from a given generator."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in shares of its height and width.

    Pictures of one scene that differ in size, such as colour and depth, are cropped alike by the same crop.
    """

    top: float
    """Of the height, above the crop."""
    left: float
    """Of the width, left of the crop."""
    height: float
    """Of the height."""
    width: float
    """Of the width."""
    flipped: bool = False
    """Mirrored left to right."""

    @classmethod
    def centre(cls, height: int, width: int) -> Self:
        """The central square of a picture of so many pixels."""
        side = min(height, width)
        return cls((1 - side / height) / 2, (1 - side / width) / 2, side / height, side / width)

    @classmethod
    def random(
        cls,
        height: int,
        width: int,
        generator: torch.Generator,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> Self:
        """RandomResizedCrop and RandomHorizontalFlip for a picture of so many pixels.

        Args:
            height, width: pixels.
            generator: of what is random; a crop that fits is looked for ten times, then the central square is taken.
            scale: least and greatest share of the area.
            ratio: least and greatest width over height, in pixels; drawn on a logarithmic scale.
            flip: the probability to be mirrored.
        """
        flipped = bool(torch.rand((), generator=generator) < flip)
        for _ in range(10):
            found = _rectangle(height, width, generator, scale, ratio)
            if found is not None:
                return cls(*found, flipped)
        square = cls.centre(height, width)
        return cls(square.top, square.left, square.height, square.width, flipped)

    def apply(self, image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        """The crop of a picture, resized to `size` x `size`, as if the whole picture were resized and then cropped."""
        left, top = self.left * image.width, self.top * image.height
        right = min(left + self.width * image.width, image.width)
        bottom = min(top + self.height * image.height, image.height)
        cropped = image.resize((size, size), resample, (left, top, right, bottom))
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else cropped


def erase(picture: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """RandErase (Zhong et al., 2020): a rectangle of 2 to 33 % of the area becomes 0, or nothing does.

    Args:
        picture: [C, H, W].
        generator: of what is random.
        probability: that something is erased.
    """
    if torch.rand((), generator=generator) >= probability:
        return picture
    height, width = picture.shape[-2:]
    for _ in range(10):
        found = _rectangle(height, width, generator, (0.02, 1 / 3), (0.3, 1 / 0.3))
        if found is not None:
            top, left, high, wide = (
                round(share * side) for share, side in zip(found, (height, width) * 2, strict=True)
            )
            picture = picture.clone()
            picture[..., top : top + high, left : left + wide] = 0
            return picture
    return picture


def _rectangle(
    height: int, width: int, generator: torch.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[float, float, float, float] | None:
    """Top, left, height and width in shares, of a random area and ratio at a random place; None: it is too large."""
    area, shape, down, right = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
    pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** shape
    high, wide = math.sqrt(pixels / aspect) / height, math.sqrt(pixels * aspect) / width
    if high > 1 or wide > 1:
        return None
    return down * (1 - high), right * (1 - wide), high, wide
