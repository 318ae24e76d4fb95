"""Stages: in what order the positions of a grid are sent (Section 5.3.2, Figures 5.4 and 5.9)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from vitrail.compress.errors import CodecError

Kind = Literal["quincunx", "marginal", "raster", "confidence_linear", "confidence_doubling"]

MAX_STAGES = 32


def quincunx(height: int, width: int, stages: int = 5) -> Tensor:
    """The stage of each position, 0 .. stages - 1, [height, width], int64: each stage about doubles what is known.

    From the last stage down, each takes every other position of what is left, in turn one colour of a chequerboard
    and the odd rows and columns of the other: what is left is first a quincunx lattice, then a square one with twice
    the spacing. The shares are 1 / 2^(S-1), 1 / 2^(S-1), 1 / 2^(S-2), ... 1/4, 1/2 where the grid divides by the
    lattice; on other grids every position still has exactly one stage. Stage 0 holds position (0, 0); other
    stages may be empty on small grids.
    """
    _check(height, width, stages)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    stage = torch.zeros(height, width, dtype=torch.int64)
    left = torch.ones(height, width, dtype=torch.bool)
    for number in range(stages - 1, 0, -1):
        level, diagonal = divmod(stages - 1 - number, 2)
        row, column = rows >> level, columns >> level
        taken = left & (((row if diagonal else row + column) & 1) == 1)
        stage[taken] = number
        left &= ~taken
    return stage


def raster(height: int, width: int) -> Tensor:
    """One position a stage, row by row, 0 .. height * width - 1, [height, width], int64 (Table 5.2)."""
    _check(height, width, 1)
    return torch.arange(height * width).view(height, width)


def marginal(height: int, width: int) -> Tensor:
    """All positions in one stage, zeros [height, width], int64: nothing but the marginal distribution (Table 5.2)."""
    return quincunx(height, width, 1)


def confidence_counts(positions: int, stages: int, schedule: Literal["linear", "doubling"]) -> list[int]:
    """How many positions each stage of the confidence-based order holds; the counts sum to `positions`.

    Linear: (about) equal counts. Doubling: the shares of the quincunx, 1 / 2^(S-1), 1 / 2^(S-1), ... 1/4, 1/2.
    """
    _check(positions, 1, stages)
    if schedule == "linear":
        known = [-(-positions * (stage + 1) // stages) for stage in range(stages)]
    else:
        known = [-(-positions >> (stages - 1 - stage)) for stage in range(stages)]
    return [after - before for before, after in pairwise([0, *known])]


def evenly_spread(positions: int, count: int) -> Tensor:
    """`count` of the positions 0 .. positions - 1, evenly spread in raster order, int64; no prior is needed."""
    return torch.arange(count) * positions // max(count, 1)


def most_confident(confidence: Tensor, count: int) -> Tensor:
    """The `count` entries of greatest `confidence` (integers, [n]), in ascending order of entry; of equals, the first.

    Integers alone decide, so that every machine with the same integers chooses the same positions.
    """
    if confidence.is_floating_point():
        raise TypeError("confidence must be integers: floating point may differ between machines")
    order = torch.sort(confidence, descending=True, stable=True).indices
    return order[:count].sort().values


@dataclass(frozen=True)
class Scheme:
    """The order in which a file sends the positions of its grid."""

    kind: Kind = "quincunx"
    """Fixed patterns (quincunx, raster, marginal), or by the prior's confidence with one of two schedules."""
    stages: int = 5
    """Stages of the quincunx and of the confidence schedules; the other kinds have as many as they need, and 1 here."""

    def __post_init__(self) -> None:
        if self.kind not in (kinds := get_args(Kind)):
            raise CodecError(f"There is no order {self.kind}; choose one of {', '.join(kinds)}.")
        if self.kind in ("marginal", "raster"):
            object.__setattr__(self, "stages", 1)
        if not 1 <= self.stages <= MAX_STAGES:
            raise CodecError(f"{self.stages} stages were asked for; choose 1 to {MAX_STAGES}.")

    @property
    def adaptive(self) -> bool:
        """Whether the prior's confidence, not the grid alone, decides."""
        return self.kind in ("confidence_linear", "confidence_doubling")

    def partition(self, height: int, width: int) -> Tensor:
        """The stage of each position of a fixed pattern, [height, width], int64."""
        match self.kind:
            case "quincunx":
                return quincunx(height, width, self.stages)
            case "raster":
                return raster(height, width)
            case "marginal":
                return marginal(height, width)
        raise TypeError(f"{self.kind} depends on the picture, not on the grid alone")

    def counts(self, height: int, width: int) -> list[int]:
        """How many positions each stage sends; zeros are possible on small grids."""
        match self.kind:
            case "confidence_linear":
                return confidence_counts(height * width, self.stages, "linear")
            case "confidence_doubling":
                return confidence_counts(height * width, self.stages, "doubling")
        stages = self.stages if self.kind == "quincunx" else 1
        return torch.bincount(self.partition(height, width).flatten(), minlength=stages).tolist()


def _check(height: int, width: int, stages: int) -> None:
    if height < 1 or width < 1:
        raise CodecError(f"A grid of {height} x {width} positions has nothing to send; use at least 1 x 1.")
    if not 1 <= stages <= MAX_STAGES:
        raise CodecError(f"{stages} stages were asked for; choose 1 to {MAX_STAGES}.")
