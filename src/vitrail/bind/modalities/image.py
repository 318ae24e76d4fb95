"""Images: colour pictures; video goes through the same encoder (Section 6.3.3)."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms import v2

from vitrail.bind.augmentation import Crop, erase
from vitrail.bind.encoder import Encoder, video_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.prompts import IMAGENET_TEMPLATES
from vitrail.config import check_range
from vitrail.data.augmentation import EvalTransform, rand_augment, to_normalized
from vitrail.data.images import read_image
from vitrail.errors import VitrailError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in 0..1, as CLIP has them."""


@dataclass(frozen=True, kw_only=True)
class Image(Modality):
    """Colour pictures, in patches of 14 x 14 pixels over two frames, of which a picture is both; OpenCLIP's ViT-H."""

    name: ClassVar[str] = "image"
    suffixes: ClassVar[frozenset[str]] = frozenset(
        {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".ppm"}
    )
    templates: ClassVar[tuple[str, ...]] = IMAGENET_TEMPLATES

    width: int = 1280
    depth: int = 32
    heads: int = 16
    temperature: float | None = None
    patch_size: int = 14
    """Pixels a side of a patch."""
    size: int = 224
    """Pixels a side of what the encoder takes: the central square, the short side resized bicubically."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the area in a random crop."""
    flip: float = 0.5
    """Probability that a random crop is mirrored (Table 6.5)."""
    colour_jitter: float = 0.4
    """Strength of the changes of brightness, contrast and saturation (Table 6.5)."""
    rand_augment: str = ""
    """RandAugment in timm's notation, for strong augmentation: rand-m9-mstd0.5 (Tables 6.5 and 6.6e); empty: none."""
    erasing: float = 0.0
    """Probability that a rectangle becomes 0; 0.25 for strong augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "patch_size", least=1)
        check_range(self, "size", least=self.patch_size)
        check_range(self, "scale", above=0, most=1)
        check_range(self, "flip", "erasing", least=0, most=1)
        check_range(self, "colour_jitter", least=0)
        if self.scale[0] > self.scale[1]:
            raise VitrailError(f"Image.scale is {self.scale[0]} to {self.scale[1]}; give the smaller number first.")

    def build(self, dimension: int) -> Encoder:
        """[B, 3, size, size], or [B, 3, 2, size, size] for clips of two frames -> [B, dimension]."""
        return video_encoder(self, dimension, patch_size=self.patch_size, size=self.size)

    def read(self, source: str | Path) -> Tensor:
        """The central square of a picture.

        Returns:
            [1, 3, size, size] float32, normalized as CLIP does.

        Raises:
            CorruptSample: there is no such file, or it is no picture that can be read.
        """
        return EvalTransform(size=self.size, mean=CLIP_MEAN, std=CLIP_STD).build()(read_image(source))[None]

    def sample(self, source: str | Path, generator: torch.Generator, crop: Crop | None = None) -> Tensor:
        """A crop of a picture, coloured otherwise and partly erased.

        Args:
            source: the file.
            generator: of what is random.
            crop: that of another sense's picture of the same scene (aligned, Table 6.6f); None: a random one.

        Returns:
            [3, size, size] float32.

        Raises:
            CorruptSample: as `read`.
        """
        picture = read_image(source)
        crop = crop or Crop.random(picture.height, picture.width, generator, self.scale, flip=self.flip)
        cropped = crop.apply(picture, self.size, Pillow.Resampling.BICUBIC)
        strength = self.colour_jitter
        steps = [v2.ColorJitter(strength, strength, strength)] if strength else []
        if self.rand_augment:
            steps.append(rand_augment(self.rand_augment, self.size, CLIP_MEAN))
        with _seeded(generator):
            coloured = v2.Compose([*steps, *to_normalized(CLIP_MEAN, CLIP_STD)])(cropped)
        return erase(coloured, generator, self.erasing)


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """The global generators, from which other people's augmentations draw, follow `generator`, and then go on."""
    seed = int(torch.randint(2**31, (), generator=generator))
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
