"""Pictures to crops for training, in 0..1."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from vitrail.config import check_order, check_range
from vitrail.data.augmentation import Transform
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class Crops:
    """Square crops, flipped at random; the centre for evaluation."""

    size: int = 256
    """Height and width in pixels, a multiple of 16."""
    resized: bool = True
    """Crop a random share of the picture and resize it, as in Section 5.4.1; otherwise cut without resizing."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the picture's area in a resized crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % 16:
            raise VitrailError(f"Crops of {self.size} pixels cannot be cut into patches; choose a multiple of 16.")
        check_range(self, "scale", above=0, most=1)
        check_range(self, "flip", least=0, most=1)
        check_order(self, "scale")

    def build(self) -> Transform:
        """A picture (RGB) -> a random crop, [3, size, size] in 0..1, float32."""
        if self.resized:
            crop = v2.RandomResizedCrop(self.size, self.scale, interpolation=InterpolationMode.BICUBIC)
        else:
            crop = v2.Compose([self._enlarge, v2.RandomCrop(self.size)])
        return v2.Compose([crop, v2.RandomHorizontalFlip(self.flip), v2.PILToTensor(), _to_unit])

    def centre(self) -> Transform:
        """A picture (RGB) -> its centre, not resized, [3, size, size] in 0..1, float32."""
        return v2.Compose([self._enlarge, v2.CenterCrop(self.size), v2.PILToTensor(), _to_unit])

    def _enlarge(self, picture: Image.Image) -> Image.Image:
        """A picture with a side below the crop's is enlarged until both hold it."""
        if min(picture.size) >= self.size:
            return picture
        return v2.functional.resize(picture, [self.size], InterpolationMode.BICUBIC)


def _to_unit(image: Tensor) -> Tensor:
    return image.to(torch.float32) / 255
