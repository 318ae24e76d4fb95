"""Pictures to tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import VitrailError


class ConvolutionalPatches(nn.Sequential):
    """3x3 convolutions of stride 2 with batch norm, GELU between, the width doubling up to d (Section 3.3.3, LeViT's).

    Takes any height and width: the zero padding of each convolution makes the grid (ceil(H / P), ceil(W / P)).

    Args:
        width: d, a multiple of 8.
        patch_size: P, 8 or 16: three or four convolutions.
        channels: of the picture.

    Raises:
        VitrailError: another P or d.
    """

    def __init__(self, width: int, patch_size: int, channels: int = 3) -> None:
        if patch_size not in (8, 16) or width % 8:
            raise VitrailError(
                f"Convolutional patches are 8 or 16 pixels wide, with a multiple of 8 channels, not {patch_size} with "
                f"{width}; choose such numbers, or the linear projection."
            )
        stages: list[nn.Module] = []
        depth = patch_size.bit_length() - 1
        for stage in range(depth):
            out = width // 2 ** (depth - 1 - stage)
            convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
            stages += [nn.Sequential(convolution, nn.BatchNorm2d(out)), nn.GELU()]
            channels = out
        super().__init__(*stages[:-1])


class LinearPatches(nn.Conv2d):
    """Each patch of P x P pixels times one matrix, as in ViT.

    A height or width that is not a multiple of P is filled up with zeros at the bottom and the right, so that the
    grid is (ceil(H / P), ceil(W / P)).
    """

    def __init__(self, width: int, patch_size: int, channels: int = 3) -> None:
        super().__init__(channels, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, d, h, w]."""
        height, width = images.shape[2:]
        bottom, right = -height % self.stride[0], -width % self.stride[1]
        # A graph for export must pad whatever comes; a branch would hold for the example's size alone.
        if torch.compiler.is_exporting() or bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return super().forward(images)
