"""Images: colour pictures, and video, which goes through the same encoder (Section 6.3.3)."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms import v2

from vitrail.backbones import BackboneConfig
from vitrail.bind.augmentation import Crop, erase
from vitrail.bind.encoder import Encoder, video_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.prompts import IMAGENET_TEMPLATES
from vitrail.bind.spans import Span, check_span
from vitrail.bind.tower import BackboneEncoder
from vitrail.config import check_order, check_range
from vitrail.data import images, video
from vitrail.data.audio import clip_starts
from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, rand_augment, to_normalized
from vitrail.data.images import read_image
from vitrail.data.video import Video, open_video

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in 0..1, as CLIP has them."""


@dataclass(frozen=True, kw_only=True)
class Image(Modality):
    """Colour pictures, in patches of 14 x 14 pixels over two frames, of which a picture is both; OpenCLIP's ViT-H.

    Of video, clips of 2 s, of which the encoder sees the first and the last frame.
    """

    name: ClassVar[str] = "image"
    window: ClassVar[float] = 2.0
    """Seconds of a clip."""
    suffixes: ClassVar[frozenset[str]] = video.SUFFIXES | {f".{kind}" for kind in images.SUFFIXES}
    templates: ClassVar[tuple[str, ...]] = IMAGENET_TEMPLATES

    width: int = 1280
    depth: int = 32
    heads: int = 16
    temperature: float | None = None
    patch_size: int = 14
    """Pixels a side of a patch."""
    size: int = 224
    """Pixels a side of what the encoder takes: the central square, the short side resized bicubically."""
    clips: int | Literal["cover"] = 5
    """Clips of a video, evenly spread: a number, or "cover", as many as leave nothing out."""
    crops: Literal[1, 3] = 3
    """Squares of each clip: the central one, or those at both ends of the longer side too."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the area in a random crop."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How a random crop is resized; bilinearly beside depth and heat (Table 6.5)."""
    flip: float = 0.5
    """Probability that a random crop is mirrored (Table 6.5)."""
    colour_jitter: float = 0.4
    """Strength of the changes of brightness, contrast and saturation (Table 6.5)."""
    rand_augment: str = ""
    """RandAugment in timm's notation, for strong augmentation: rand-m9-mstd0.5 (Tables 6.5 and 6.6e); empty: none."""
    erasing: float = 0.0
    """Probability that a rectangle becomes 0; 0.25 for strong augmentation."""
    backbone: BackboneConfig | None = None
    """A backbone of Vitrail's, as a rule pre-trained and frozen (Table 6.9), in place of the ViT of the fields above;
    its class token goes through a linear head."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from red, green and blue in 0..1; None: CLIP's, or before a backbone ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Divides red, green and blue after the mean is subtracted; None as for the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "patch_size", least=1)
        check_range(self, "size", least=self.patch_size)
        if self.clips != "cover":
            check_range(self, "clips", least=1)
        check_range(self, "scale", above=0, most=1)
        check_range(self, "flip", "erasing", least=0, most=1)
        check_range(self, "colour_jitter", least=0)
        check_range(self, "mean")
        check_range(self, "std", above=0)
        check_order(self, "scale")

    @property
    def normalization(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and deviation of red, green and blue."""
        mean, std = (CLIP_MEAN, CLIP_STD) if self.backbone is None else (IMAGENET_MEAN, IMAGENET_STD)
        return self.mean or mean, self.std or std

    def build(self, dimension: int) -> Encoder | BackboneEncoder:
        """[B, 3, size, size], or [B, 3, 2, size, size] for clips of two frames -> [B, dimension]."""
        if self.backbone is not None:
            return BackboneEncoder(self.backbone, dimension)
        return video_encoder(self, dimension, patch_size=self.patch_size, size=self.size)

    def read(self, source: str | Path) -> Tensor:
        """The central square of a picture, or the views of a video: crops of clips.

        Returns:
            [1, 3, size, size], of a video [clips * crops, 3, 2, size, size], float32, normalized.

        Raises:
            CorruptSample: there is no such file, or it is no picture or video that can be read.
        """
        if _is_video(source):
            return torch.cat([views for _, views in self.parts(source)])
        mean, std = self.normalization
        return EvalTransform(size=self.size, mean=mean, std=std).build()(read_image(source))[None]

    def read_part(self, source: str | Path, part: Span) -> Tensor:
        """The views of a part of a video: see `Modality.read_part`."""
        if not _is_video(source):
            return self.read(source)
        video = open_video(source)
        check_span(source, part, video.duration)
        starts = clip_starts(video.duration, self.window, self.clips, part)
        return torch.cat([views for _, views in self._clips(video, starts)])

    def parts(self, source: str | Path) -> Iterator[tuple[Span | None, Tensor]]:
        """The views of a video clip by clip: see `Modality.parts`."""
        if not _is_video(source):
            yield None, self.read(source)
            return
        video = open_video(source)
        yield from self._clips(video, clip_starts(video.duration, self.window, self.clips))

    def _clips(self, video: Video, starts: Sequence[float]) -> Iterator[tuple[Span, Tensor]]:
        for number, frames in video.clips(starts, self.window):
            start = starts[number]
            yield (start, min(self.window, max(video.duration - start, 0.0))), self._views(torch.from_numpy(frames))

    def _views(self, frames: Tensor) -> Tensor:
        """The ends of a clip, [2, H, W, 3] uint8 -> [crops, 3, 2, size, size], along the longer side."""
        clip = frames.permute(3, 0, 1, 2).float() / 255
        height, width = clip.shape[2:]
        size = self.size
        long = size * max(height, width) // min(height, width)
        shape = (long, size) if height > width else (size, long)
        clip = torch.nn.functional.interpolate(clip, shape, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values)[:, None, None, None] for values in self.normalization)
        clip = (clip - mean) / std
        middle = math.ceil((long - size) / 2)
        starts = (middle,) if self.crops == 1 else (0, middle, long - size)
        return torch.stack([clip.narrow(2 if height > width else 3, start, size) for start in starts])

    def sample(
        self,
        source: str | Path,
        generator: torch.Generator,
        crop: Crop | None = None,
        start: float | None = None,
    ) -> Tensor:
        """A crop of a picture, or of a clip of a video, coloured otherwise and partly erased; both its frames alike.

        Args:
            source: the file.
            generator: of what is random.
            crop: that of another sense's picture of the same scene (aligned, Table 6.6f); None: a random one.
            start: seconds where a video's clip begins, that of the sound or motion (aligned, Table 6.6h); None:
                anywhere.

        Returns:
            [3, size, size], of a video [3, 2, size, size], float32.

        Raises:
            CorruptSample: as `read`.
        """
        if not _is_video(source):
            picture = read_image(source)
            crop = crop or Crop.random(picture.height, picture.width, generator, self.scale, flip=self.flip)
            return erase(self._augmented([picture], crop, generator)[0], generator, self.erasing)
        video = open_video(source)
        last = max(video.duration - self.window, 0.0)
        anywhere = last * float(torch.rand((), generator=generator))
        (clip,) = video.clips([anywhere if start is None else min(max(start, 0.0), last)], self.window)
        height, width = clip.frames.shape[1:3]
        crop = crop or Crop.random(height, width, generator, self.scale, flip=self.flip)
        frames = self._augmented([Pillow.fromarray(frame) for frame in clip.frames], crop, generator)
        return erase(torch.stack(frames, dim=1), generator, self.erasing)

    def _augmented(self, pictures: list[Pillow.Image], crop: Crop, generator: torch.Generator) -> list[Tensor]:
        """Pictures cropped and coloured, all by the same random numbers."""
        strength = self.colour_jitter
        steps = [v2.ColorJitter(strength, strength, strength)] if strength else []
        if self.rand_augment:
            steps.append(rand_augment(self.rand_augment, self.size, self.normalization[0]))
        colour = v2.Compose([*steps, *to_normalized(*self.normalization)])
        resample = Pillow.Resampling[self.interpolation.upper()]
        seed = int(torch.randint(2**31, (), generator=generator))
        made = []
        for picture in pictures:
            with _seeded(seed):
                made.append(colour(crop.apply(picture, self.size, resample)))
        return made

    def duration(self, source: str | Path) -> float:
        """Seconds that a video lasts; of a picture, without end.

        Raises:
            CorruptSample: as `read`.
        """
        return open_video(source).duration if _is_video(source) else math.inf


def _is_video(source: str | Path) -> bool:
    return Path(source).suffix.lower() in video.SUFFIXES


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators, from which other people's augmentations draw, follow `seed`, and then go on."""
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
