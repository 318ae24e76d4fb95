"""Attention cheaper than quadratic in the number of tokens: Table 3.3's stand-ins for `SelfAttention`.

All are called as `attention(tokens, grid, leading)`: tokens [B, leading + N, d], of which the first `leading` (class
and distillation tokens) have no place in the picture and the others are its N = h * w patches, row by row. What is
saved is saved among the patches: every token attends to the leading tokens, and these attend to whatever stands for
the whole picture. There are few of them, so that the orders of complexity remain.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import VitrailError
from vitrail.layers.patches import LinearPatches

Grid = tuple[int, int]


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, d] -> [B, h, N, d/h]."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def _whole(grid: Grid | None) -> Grid:
    if grid is None:
        raise ValueError("this attention needs all patches of a picture and their grid, not a subset")
    return grid


class SpatialReductionAttention(nn.Module):
    """SRA (Wang et al., 2021a, PVT): queries from all tokens, keys and values from the patches of a coarser grid.

    O(N^2 / R^2) operations. A row or column of windows that overhangs the grid averages what there is, or convolves
    with zeros beyond. The leading tokens' keys and values stay.

    Args:
        width: d.
        heads: h.
        reduction: R, patches a side of a window; 1: full attention.
        pooling: "average" of a window, or "convolutional": an R x R convolution of stride R and a LayerNorm.
    """

    def __init__(
        self, width: int, heads: int, reduction: int, pooling: Literal["average", "convolutional"] = "average"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)
        self.pool: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if reduction > 1 and pooling == "average":
            self.pool = nn.AvgPool2d(reduction, ceil_mode=True)
        elif reduction > 1:
            self.pool = LinearPatches(width, reduction, channels=width)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, grid: Grid | None, leading: int = 0) -> Tensor:
        """[B, leading + h * w, d] -> the same shape, for a grid (h, w)."""
        picture = tokens[:, leading:].mT.unflatten(2, _whole(grid))
        reduced = self.norm(self.pool(picture).flatten(2).mT)
        sources = torch.cat([tokens[:, :leading], reduced], dim=1)
        query = _by_head(self.query(tokens), self.heads)
        key, value = (_by_head(part, self.heads) for part in self.key_value(sources).chunk(2, dim=2))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class LinformerAttention(nn.Module):
    """Keys and values of the N patches mixed down to k by learned matrices (Wang et al., 2020c).

    O(k N) operations. The matrices, one for keys and one for values, shared by the heads, fix N. The leading tokens'
    keys and values stay.

    Args:
        width: d.
        heads: h.
        length: N.
        compressed: k; by default the square root of N, rounded (Table 3.3).
    """

    def __init__(self, width: int, heads: int, length: int, compressed: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.length = length
        compressed = compressed or round(math.sqrt(length))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.key_compression = nn.Parameter(torch.empty(compressed, length))
        self.value_compression = nn.Parameter(torch.empty(compressed, length))
        for compression in (self.key_compression, self.value_compression):
            nn.init.normal_(compression, std=length**-0.5)  # keys and values keep their magnitude

    def forward(self, tokens: Tensor, grid: Grid | None = None, leading: int = 0) -> Tensor:
        """[B, leading + N, d] -> the same shape.

        Raises:
            VitrailError: there are not N patches.
        """
        if tokens.shape[1] - leading != self.length:
            raise VitrailError(
                f"Linformer attention was built for {self.length} patches and cannot take {tokens.shape[1] - leading}; "
                "give it pictures of the size it was built for, or choose another attention."
            )
        query, key, value = (_by_head(part, self.heads) for part in self.query_key_value(tokens).chunk(3, dim=2))
        key = torch.cat([key[:, :, :leading], self.key_compression @ key[:, :, leading:]], dim=2)
        value = torch.cat([value[:, :, :leading], self.value_compression @ value[:, :, leading:]], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class EfficientAttention(nn.Module):
    """Softmax over each query's channels times (softmax over the tokens of each key channel, times values).

    Shen et al., 2021: rho_q(Q) (rho_k(K)^T V) per head, O(N d^2 / h) operations. All tokens are alike to it, any
    number of them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor, grid: Grid | None = None, leading: int = 0) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        query, key, value = (_by_head(part, self.heads) for part in self.query_key_value(tokens).chunk(3, dim=2))
        context = key.softmax(dim=2).mT @ value  # [B, h, d/h, d/h]
        mixed = query.softmax(dim=3) @ context
        return self.projection(mixed.transpose(1, 2).flatten(2))


class RowAttention(nn.Module):
    """Softmax attention of each patch to the patches of its row and the leading tokens; of these to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor, grid: Grid, leading: int = 0, columns: bool = False) -> Tensor:
        """[B, leading + h * w, d] -> the same shape; `columns`: each patch attends to its column instead."""
        parts = [_by_head(part, self.heads) for part in self.query_key_value(tokens).chunk(3, dim=2)]
        query, key, value = parts
        mixed_leading = F.scaled_dot_product_attention(query[:, :, :leading], key, value)

        rows = [part[:, :, leading:].unflatten(2, grid) for part in parts]  # [B, heads, h, w, d/heads]
        if columns:
            rows = [row.transpose(2, 3) for row in rows]
        query, key, value = rows
        key, value = (
            torch.cat([part[:, :, None, :leading].expand(-1, -1, row.shape[2], -1, -1), row], dim=3)
            for part, row in zip(parts[1:], (key, value), strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = (mixed.transpose(2, 3) if columns else mixed).flatten(2, 3)
        return self.projection(torch.cat([mixed_leading, mixed], dim=2).transpose(1, 2).flatten(2))


class AxialAttention(nn.Module):
    """Attention along the rows, then along the columns (Ho et al., 2019), O(N (h + w)) operations.

    Two layers with weights of their own, the second on the sum of the first and its input, as residual layers in a
    stack are: rows(x) + columns(x + rows(x)), to which the block adds x.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.rows = RowAttention(width, heads)
        self.columns = RowAttention(width, heads)

    def forward(self, tokens: Tensor, grid: Grid | None, leading: int = 0) -> Tensor:
        """[B, leading + h * w, d] -> the same shape, for a grid (h, w)."""
        mixed = self.rows(tokens, _whole(grid), leading)
        return mixed + self.columns(tokens + mixed, _whole(grid), leading, columns=True)
