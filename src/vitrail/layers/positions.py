"""Where a token stands in the picture."""

import math

import torch
from torch import Tensor, nn


def sinusoids(height: int, width: int, dimensions: int, device: torch.device | None = None) -> Tensor:
    """The 2-D sinusoidal encoding of Section 3.5.4, [2 * dimensions, height, width], float32.

    Row y of H stands at 2 pi (y + 1) / (H + 1e-6); its first `dimensions` channels are sine and cosine, interleaved, of
    that angle over 10000^(2 i / dimensions), i = 0 .. dimensions / 2 - 1; the others encode the column likewise.
    """

    def axis(length: int) -> Tensor:
        angle = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
        exponent = torch.arange(0, dimensions, 2, dtype=torch.float32, device=device) / dimensions
        phase = angle / (10000**exponent)[:, None]  # [dimensions / 2, length]
        return torch.stack([phase.sin(), phase.cos()], dim=1).flatten(0, 1)

    rows = axis(height)[:, :, None].expand(-1, -1, width)
    columns = axis(width)[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])


class SinusoidalPositions(nn.Module):
    """The sinusoidal encoding in 64 dimensions, projected to the width of the model (Section 3.5.4)."""

    dimensions_per_axis = 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2 * self.dimensions_per_axis, width, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """A grid of height x width -> [1, d, height, width]."""
        weight = self.projection.weight
        encoding = sinusoids(height, width, self.dimensions_per_axis, weight.device)
        return self.projection(encoding.to(weight.dtype)[None])
