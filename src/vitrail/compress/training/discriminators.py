"""Discriminators: originals from reconstructions, without any other signal (Section 5.4.1, Table 5.1).

All are called with images [B, 3, H, W] in about 0..1 and with the maps of the frozen features, which one of them uses,
and give any number of maps of logits, higher for originals.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vitrail.compress.perceptual import Maps

DiscriminatorName = Literal["none", "projected", "stylegan", "unet"]

_SLOPE = 0.2


class ProjectedDiscriminator(nn.Module):
    """ProjectedGAN's (Sauer et al., 2021): one small discriminator on each of several mixed maps of frozen features.

    The features' channels are mixed by fixed random 1x1 convolutions, and their scales by fixed random 3x3 convolutions
    from the coarsest to the finest, so that none of them can be ignored. Each discriminator halves its map until it
    is as coarse as the coarsest.

    Args:
        channels: of each map of the features.
        width: channels of the mixed maps.
    """

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.channel_mixing = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.scale_mixing = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in channels)
        for mixing in (*self.channel_mixing, *self.scale_mixing):
            nn.init.kaiming_normal_(mixing.weight, nonlinearity="linear")
            mixing.requires_grad_(False)
        self.judges = nn.ModuleList(self._judge(width, len(channels) - 1 - scale) for scale in range(len(channels)))

    @staticmethod
    def _judge(width: int, halvings: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [spectral_norm(nn.Conv2d(width, width, 4, stride=2, padding=1)), nn.LeakyReLU(_SLOPE)]
        layers += [spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(_SLOPE)]
        return nn.Sequential(*layers, spectral_norm(nn.Conv2d(width, 1, 3, padding=1)))

    def forward(self, images: Tensor, maps: Maps) -> tuple[Tensor, ...]:
        """Maps of logits [B, 1, h, w], one for each map of the features."""
        mixed: list[Tensor] = []
        for features, channels, scales in zip(
            reversed(maps), reversed(self.channel_mixing), reversed(self.scale_mixing), strict=True
        ):
            picture = channels(features)
            if mixed:
                picture = picture + F.interpolate(mixed[-1], size=picture.shape[2:], mode="bilinear")
            mixed.append(scales(picture))
        return tuple(judge(picture) for judge, picture in zip(self.judges, reversed(mixed), strict=True))


class StyleGANDiscriminator(nn.Module):
    """StyleGAN's (Karras et al., 2019) in residual form: halves the picture four times; one logit a picture.

    Before the last convolution, the deviation of the features over the batch joins them as one more channel. The
    features are averaged over the picture instead of flattened, so that any size will do.

    Args:
        width: channels at full size; they double with each halving, up to eight times.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2 ** min(stage, 3) for stage in range(5)]
        self.first = nn.Conv2d(3, width, 1)
        self.blocks = nn.ModuleList(_ResidualHalving(narrow, wide) for narrow, wide in pairwise(widths))
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor, maps: Maps = ()) -> tuple[Tensor, ...]:
        """One tensor of logits, [B, 1]."""
        picture = F.leaky_relu(self.first(2 * images - 1), _SLOPE)
        for block in self.blocks:
            picture = block(picture)
        deviation = (picture.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        picture = torch.cat([picture, deviation.expand_as(picture[:, :1])], dim=1)
        return (self.head(F.leaky_relu(self.last(picture), _SLOPE).mean(dim=(2, 3))),)


class _ResidualHalving(nn.Module):
    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.convolution2 = nn.Conv2d(narrow, wide, 3, padding=1)
        self.skip = nn.Conv2d(narrow, wide, 1, bias=False)

    def forward(self, picture: Tensor) -> Tensor:
        branch = F.leaky_relu(self.convolution2(F.leaky_relu(self.convolution1(picture), _SLOPE)), _SLOPE)
        return F.avg_pool2d(branch + self.skip(picture), 2, ceil_mode=True) / math.sqrt(2)


class UNetDiscriminator(nn.Module):
    """A U-Net (Schoenfeld et al., 2020): one logit for the picture, after four halvings, and one for each pixel.

    Args:
        width: channels at half size; they double with each further halving.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [3, *(width * 2**stage for stage in range(4))]
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(narrow, wide, 4, stride=2, padding=1)) for narrow, wide in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], 1)
        self.up = nn.ModuleList(
            spectral_norm(nn.Conv2d(wide + narrow, max(narrow, width), 3, padding=1))
            for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.pixels = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor, maps: Maps = ()) -> tuple[Tensor, ...]:
        """Logits [B, 1] and [B, 1, H, W]."""
        picture = 2 * images - 1
        skips = []
        for convolution in self.down:
            skips.append(picture)
            picture = F.leaky_relu(convolution(picture), _SLOPE)
        whole = self.head(picture.mean(dim=(2, 3)))
        for convolution, skip in zip(self.up, reversed(skips), strict=True):
            picture = torch.cat([F.interpolate(picture, size=skip.shape[2:]), skip], dim=1)
            picture = F.leaky_relu(convolution(picture), _SLOPE)
        return whole, self.pixels(picture)


def build_discriminator(name: DiscriminatorName, channels: Sequence[int], width: int) -> nn.Module | None:
    """The discriminator of that name with fresh weights; for "none", none.

    Args:
        name: which.
        channels: of the maps of the frozen features; the projected one needs them.
        width: channels of its layers.
    """
    if name == "projected":
        return ProjectedDiscriminator(channels, width)
    if name == "stylegan":
        return StyleGANDiscriminator(width)
    return UNetDiscriminator(width) if name == "unet" else None
