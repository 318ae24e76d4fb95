"""What depth and heat have in common: pictures of one channel."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.bind.augmentation import Crop, erase
from vitrail.bind.encoder import Encoder, patch_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.prompts import IMAGENET_TEMPLATES
from vitrail.config import check_order, check_range
from vitrail.data.arrays import read_arrays
from vitrail.data.corrupt import CorruptSample
from vitrail.data.exr import read_exr
from vitrail.data.images import image_size, read_values

Source = str | Path | np.ndarray


@dataclass(frozen=True, kw_only=True)
class GreyPicture(Modality):
    """Pictures of one channel, in patches of 16 x 16 pixels (Section 6.3.3); a subclass gives `plane`."""

    templates: ClassVar[tuple[str, ...]] = IMAGENET_TEMPLATES

    size: int = 224
    """Pixels a side of what the encoder takes: the central square, resized bilinearly."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the area in a random crop."""
    flip: float = 0.5
    """Probability that a random crop is mirrored (Table 6.5)."""
    erasing: float = 0.25
    """Probability that a rectangle of a random crop becomes 0 (Table 6.5)."""
    mean: float = 0.0
    """Subtracted."""
    std: float = 1.0
    """Divides after the mean is subtracted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", least=16)
        check_range(self, "scale", above=0, most=1)
        check_range(self, "flip", "erasing", least=0, most=1)
        check_range(self, "mean")
        check_range(self, "std", above=0)
        check_order(self, "scale")

    def build(self, dimension: int) -> Encoder:
        """[B, 1, size, size] -> [B, dimension]."""
        size = (self.size, self.size)
        return patch_encoder(self, dimension, channels=1, kernel_size=16, stride=16, size=size)

    def plane(self, source: Source) -> np.ndarray:
        """The picture [H, W] before cropping and normalization, finite float32.

        Raises:
            CorruptSample: there is no such file, or it is damaged or none of this sense.
        """
        raise NotImplementedError

    def read(self, source: Source) -> Tensor:
        """The central square of a file, or of its numbers [H, W].

        Returns:
            [1, 1, size, size] float32.

        Raises:
            CorruptSample: as `plane`.
        """
        plane = self.plane(source)
        height, width = plane.shape
        return self._prepared(plane, Crop.centre(height, width))[None]

    def sample(self, source: Source, generator: torch.Generator, crop: Crop | None = None) -> Tensor:
        """A crop of a file, or of its numbers [H, W], partly erased.

        Args:
            source: the file.
            generator: of what is random.
            crop: that of the colour picture of the same scene (aligned, Table 6.6f); None: a random one.

        Returns:
            [1, size, size] float32.

        Raises:
            CorruptSample: as `plane`.
        """
        plane = self.plane(source)
        height, width = plane.shape
        crop = crop or Crop.random(height, width, generator, self.scale, flip=self.flip)
        return erase(self._prepared(plane, crop), generator, self.erasing)

    def _prepared(self, plane: np.ndarray, crop: Crop) -> Tensor:
        """[H, W] -> [1, size, size]."""
        cropped = crop.apply(Image.fromarray(plane), self.size, Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(cropped))[None] - self.mean) / self.std


def picture_size(source: str | Path) -> tuple[int, int]:
    """Height and width of a picture in a file, of colour or of one channel.

    Raises:
        CorruptSample: there is no such file, or it is no picture.
    """
    if Path(source).suffix.lower() not in (".npy", ".exr"):
        return image_size(source)
    height, width = grey_values(source)[0].shape
    return height, width


def grey_values(source: Source) -> tuple[np.ndarray, str]:
    """The numbers of a picture, of an NPY or EXR file or of an array as they are, [H, W], and what errors call it.

    Raises:
        CorruptSample: there is no such file, it is damaged, or of another shape.
    """
    name = "the array" if isinstance(source, np.ndarray) else str(source)
    if isinstance(source, np.ndarray):
        values = source
    elif name.lower().endswith(".npy"):
        values = read_arrays(source)[""]
    elif name.lower().endswith(".exr"):
        values = read_exr(source)
    else:
        values = read_values(source)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or not values.size:
        raise CorruptSample(name, f"its shape {list(values.shape)} is not that of a picture of one channel, [H, W]")
    return values, name
