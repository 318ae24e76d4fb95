"""Pictures to normalised tensors: the training recipe of DeiT, the evaluation crop, mixing of batches.

Everything random is drawn from the global generators of torch, random and numpy, which the loader seeds sample by
sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import InterpolationMode, v2

from vitrail.config import check_choices, check_order, check_range
from vitrail.errors import VitrailError

LARGEST = 2**14
"""Pixels a side of a resized picture: more would fill the memory, which Pillow does not notice until it is too late."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class TrainTransform:
    """A random crop, flipped, coloured and partly erased: the recipe of DeiT that section 3.5.1 follows."""

    size: int = 224
    """Height and width of the result, in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the picture's area in the crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width over height of the crop before it is resized."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation; empty for none."""
    colour_jitter: float = 0.4
    """Strength of the changes of brightness, contrast and saturation; applies only without RandAugment."""
    erasing: float = 0.25
    """Probability that a rectangle is replaced by noise."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides red, green and blue after the mean is subtracted."""

    def __post_init__(self) -> None:
        check_range(self, "size", least=1, most=LARGEST)
        check_range(self, "scale", above=0, most=1)
        check_range(self, "ratio", "std", above=0)
        check_range(self, "flip", "erasing", least=0, most=1)
        check_range(self, "colour_jitter", least=0)
        check_range(self, "mean")
        check_order(self, "scale", "ratio")

    def build(self) -> Transform:
        """A picture (RGB) -> [3, size, size], float32.

        Raises:
            VitrailError: timm does not understand `rand_augment`.
        """
        crop = v2.RandomResizedCrop(self.size, self.scale, self.ratio, interpolation=InterpolationMode.BICUBIC)
        steps: list[Callable] = [crop, v2.RandomHorizontalFlip(self.flip)]
        if self.rand_augment:
            steps.append(rand_augment(self.rand_augment, self.size, self.mean))
        elif self.colour_jitter:
            steps.append(v2.ColorJitter(self.colour_jitter, self.colour_jitter, self.colour_jitter))
        steps += to_normalized(self.mean, self.std)
        if self.erasing:  # normal noise per pixel, areas of 2 to 33 %, as DeiT
            steps.append(v2.RandomErasing(self.erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"))
        return v2.Compose(steps)


@dataclass(frozen=True)
class EvalTransform:
    """The centre of the picture: the short side resized to `size / crop_ratio`, then a square of `size` pixels.

    The thesis evaluates at crop ratio 1.0, DINO's models at 0.875 (Table 3.7).
    """

    size: int = 224
    """Height and width of the result, in pixels."""
    crop_ratio: float = 1.0
    """Side of the crop over the short side of the resized picture, at most 1."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How the picture is resized."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides red, green and blue after the mean is subtracted."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "size", least=1)
        check_range(self, "crop_ratio", "std", above=0)
        check_range(self, "crop_ratio", most=1)
        check_range(self, "mean")
        if self.size / self.crop_ratio > LARGEST:
            raise VitrailError(
                f"EvalTransform.size is {self.size} at a crop ratio of {self.crop_ratio:g}, and pictures are resized "
                f"to {LARGEST} pixels at most; choose a smaller size."
            )

    def build(self) -> Transform:
        """A picture (RGB) -> [3, size, size], float32."""
        resize = v2.Resize(math.floor(self.size / self.crop_ratio), InterpolationMode(self.interpolation))
        return v2.Compose([_without_far_ends, resize, v2.CenterCrop(self.size), *to_normalized(self.mean, self.std)])


@dataclass(frozen=True)
class Mixing:
    """Batches in which images are blended with, or pasted into, their neighbours: mixup and CutMix."""

    mixup: float = 0.8
    """Both parameters of the Beta distribution of mixup's weight; 0 for no mixup."""
    cutmix: float = 1.0
    """Both parameters of the Beta distribution of CutMix's area; 0 for no CutMix."""
    switch: float = 0.5
    """Probability of CutMix where both are on."""

    def __post_init__(self) -> None:
        check_range(self, "mixup", "cutmix", least=0)
        check_range(self, "switch", least=0, most=1)

    def build(self, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(images [B, 3, H, W], labels [B]) -> the mixed images and targets [B, classes], rows that sum to 1."""
        mixup = v2.MixUp(alpha=self.mixup, num_classes=classes) if self.mixup else None
        cutmix = v2.CutMix(alpha=self.cutmix, num_classes=classes) if self.cutmix else None

        def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            chosen = mixup or cutmix
            if mixup and cutmix and torch.rand(()) < self.switch:
                chosen = cutmix
            return chosen(images, labels) if chosen else (images, one_hot(labels, classes).float())

        return mix


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of a strip more than 32 times as long as wide, which might not fit into memory when it is resized."""
    width, height = (min(side, 32 * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_normalized(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Callable]:
    """The last steps of a transform: a picture (RGB) -> [3, H, W] float32, `mean` subtracted, divided by `std`."""
    return [v2.PILToTensor(), _to_float, v2.Normalize(mean, std, inplace=True)]


def _to_float(image: Tensor) -> Tensor:
    return image.to(torch.float32).div_(255)  # v2.ToDtype multiplies by 1/255, which rounds otherwise than the peers


def rand_augment(policy: str, size: int, mean: tuple[float, ...]) -> Callable:
    """RandAugment of pictures of `size` pixels, in timm's notation; what it uncovers has the colour `mean`, in 0..1.

    Raises:
        VitrailError: timm does not understand `policy`.
    """
    from timm.data.auto_augment import rand_augment_transform  # here, for it takes a second

    # The greatest shift and the colour that fills what is uncovered, as timm's training pipeline has them.
    parameters = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        return rand_augment_transform(policy, parameters)
    except (AssertionError, ValueError, KeyError) as error:
        reason = f" ({error})" if str(error) else ""
        raise VitrailError(
            f"rand_augment is {policy!r}, which timm does not understand{reason}; "
            "write it like rand-m9-mstd0.5-inc1, or leave it empty for none."
        ) from None
