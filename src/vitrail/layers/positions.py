"""Where a token stands in the picture."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(
    height: int,
    width: int,
    dimensions: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The 2-D sinusoidal encoding of Section 3.5.4, [2 * dimensions, height, width], computed in `dtype`.

    Row y of H stands at 2 pi (y + 1) / (H + 1e-6); its first `dimensions` channels are sine and cosine, interleaved, of
    that angle over 10000^(2 i / dimensions), i = 0 .. dimensions / 2 - 1; the others encode the column likewise.
    """

    rows = axis_sinusoids(height, dimensions, device, dtype)[:, :, None].expand(-1, -1, width)
    columns = axis_sinusoids(width, dimensions, device, dtype)[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])


def axis_sinusoids(length: int, dimensions: int, device: torch.device | None, dtype: torch.dtype) -> Tensor:
    """What `sinusoids` encodes the rows, or the columns, of a grid with, [dimensions, length]."""
    angle = torch.arange(1, length + 1, dtype=dtype, device=device) / (length + 1e-6) * (2 * math.pi)
    exponent = torch.arange(0, dimensions, 2, dtype=dtype, device=device) / dimensions
    phase = angle / (10000**exponent)[:, None]  # [dimensions / 2, length]
    return torch.stack([phase.sin(), phase.cos()], dim=1).flatten(0, 1)


class SinusoidalPositions(nn.Module):
    """The sinusoidal encoding in 64 dimensions, projected to the width of the model (Section 3.5.4)."""

    dimensions_per_axis = 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2 * self.dimensions_per_axis, width, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """A grid of height x width -> [1, d, height, width]."""
        encoding = sinusoids(height, width, self.dimensions_per_axis, self.projection.weight.device, self._dtype())
        return self.projection(encoding.to(self.projection.weight.dtype)[None])

    def add_to(self, tokens: Tensor) -> Tensor:
        """Tokens [B, h, w, d], to be overwritten, plus their positions.

        A position is the sum of what its row and what its column have: those of the whole grid never exist.
        """
        of_rows, of_columns = self.projection.weight.flatten(1).split(self.dimensions_per_axis, dim=1)
        rows = F.linear(self._axis(tokens.shape[1]), of_rows, self.projection.bias)
        columns = F.linear(self._axis(tokens.shape[2]), of_columns)
        if torch.compiler.is_compiling():  # torch 2.11's gave wrong tokens where its input was overwritten
            return tokens + rows[:, None] + columns
        return tokens.add_(rows[:, None]).add_(columns)

    def _axis(self, length: int) -> Tensor:
        weight = self.projection.weight
        return axis_sinusoids(length, self.dimensions_per_axis, weight.device, self._dtype()).mT.to(weight.dtype)

    def _dtype(self) -> torch.dtype:
        """float64 where the weights are, so that a float64 network is one; half precision would be too coarse."""
        return torch.promote_types(self.projection.weight.dtype, torch.float32)


def resample_positions(
    table: Tensor, leading: int, old: tuple[int, int], new: tuple[int, int], antialias: bool = True
) -> Tensor:
    """A learned table for another grid: bicubic, antialiased, as timm resizes the positions of its checkpoints.

    Args:
        table: [1, leading + h * w, d], row by row.
        leading: how many tokens before the patches have a position, which stays as it is.
        old: (h, w) of `table`.
        new: (h', w') to come.
        antialias: False for the other bicubic kernel, of a = -0.75, which DINO and ImageBind resize with.

    Returns:
        [1, leading + h' * w', d].
    """
    before, patches = table[:, :leading], table[:, leading:]
    picture = patches.mT.unflatten(2, old).float()
    picture = F.interpolate(picture, size=new, mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([before, picture.flatten(2).mT.to(table.dtype)], dim=1)


class LearnedPositions(nn.Module):
    """A learned vector for each place of one grid, and for each token before the patches; resampled for other grids.

    Args:
        width: d.
        grid: (h, w) that the vectors are learned for.
        leading: how many tokens stand before the patches.
        antialias: how they are resampled, see `resample_positions`.
    """

    def __init__(self, width: int, grid: tuple[int, int], leading: int = 0, antialias: bool = True) -> None:
        super().__init__()
        self.antialias = antialias
        self.grid = grid
        self.leading = leading
        self.table = nn.Parameter(torch.empty(1, leading + grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """A grid of height x width -> [1, d, height, width]."""
        table: Tensor = self.table
        # A graph for export must resample for whatever comes; a branch would hold for the example's size alone.
        if torch.compiler.is_exporting() or (height, width) != self.grid:
            table = resample_positions(table, self.leading, self.grid, (height, width), self.antialias)
        return table[:, self.leading :].mT.unflatten(2, (height, width))

    def before(self) -> Tensor:
        """The positions of the tokens before the patches, [1, leading, d]."""
        return self.table[:, : self.leading]
