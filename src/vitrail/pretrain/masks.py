"""Which patches a network does not see: blocks (Bao et al., 2021) or any (He et al., 2021), in exact numbers."""

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vitrail.config import check_choices, check_range
from vitrail.data.loader import Dataset
from vitrail.errors import VitrailError

_LEAST_ASPECT = 0.3
_TRIES = 10


@dataclass(frozen=True)
class Masks:
    """How masks are drawn; the defaults are SplitMask's (Section 4.5.6)."""

    kind: Literal["block", "uniform"] = "block"
    """Rectangles that may overlap, or patches one by one."""
    ratio: float = 0.5
    """Share of the patches that is hidden, rounded to whole patches and reached exactly."""
    least: int = 16
    """Patches of the smallest block."""
    most: int = 75
    """Patches of the largest block."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "ratio", above=0, below=1)
        check_range(self, "least", "most", least=1)
        if self.least > self.most:
            raise VitrailError(f"Blocks of {self.least} to {self.most} patches cannot be drawn; swap least and most.")

    def hidden(self, grid: tuple[int, int]) -> int:
        """How many patches of a grid (h, w) are hidden: at least one, and not all.

        Raises:
            VitrailError: the grid has a single patch.
        """
        patches = grid[0] * grid[1]
        if patches < 2:
            raise VitrailError("A picture of one patch cannot be masked; take larger pictures or smaller patches.")
        return min(max(round(self.ratio * patches), 1), patches - 1)

    def draw(self, grid: tuple[int, int]) -> Tensor:
        """Which patches are hidden, [h, w] bool, drawn from Python's global generator."""
        count = self.hidden(grid)
        mask = torch.zeros(grid, dtype=torch.bool)
        if self.kind == "uniform":
            mask.view(-1)[random.sample(range(mask.numel()), count)] = True
            return mask
        while (left := count - int(mask.sum())) and self._add_block(mask, left):
            pass
        _grow(mask, count)
        return mask

    def _add_block(self, mask: Tensor, left: int) -> bool:
        """Hides one more rectangle that adds `left` patches at most; False: none was found."""
        for _ in range(_TRIES):
            area = random.uniform(self.least, max(self.least, min(left, self.most)))
            aspect = math.exp(random.uniform(math.log(_LEAST_ASPECT), -math.log(_LEAST_ASPECT)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height <= mask.shape[0] and width <= mask.shape[1] and self.least <= height * width <= self.most):
                continue  # rounding may leave the limits
            top, start = random.randint(0, mask.shape[0] - height), random.randint(0, mask.shape[1] - width)
            block = mask[top : top + height, start : start + width]
            if 0 < int((~block).sum()) <= left:
                block[:] = True
                return True
        return False


def _grow(mask: Tensor, count: int) -> None:
    """Hides patches beside hidden ones, one by one, until `count` are hidden: blocks alone rarely hit the number."""
    height, width = mask.shape
    hidden = {(y, x) for y, x in mask.nonzero().tolist()}
    while len(hidden) < count:
        beside = {
            (y + down, x + right)
            for y, x in hidden
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if 0 <= y + down < height and 0 <= x + right < width
        } - hidden
        candidates = sorted(beside) or [(y, x) for y in range(height) for x in range(width)]
        hidden.add(random.choice(candidates))
    for y, x in hidden:
        mask[y, x] = True


class MaskedImage(NamedTuple):
    """A sample, or a batch of them.

    Attributes:
        image: [3, H, W], or [B, 3, H, W].
        mask: [h, w] bool, or [B, h, w], the hidden patches.
    """

    image: Tensor
    mask: Tensor


def grid_of(image: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image [..., H, W]."""
    return -(-image.shape[-2] // patch_size), -(-image.shape[-1] // patch_size)


class MaskedImages:
    """A data set of unlabelled images with a mask for each, drawn anew every time.

    Args:
        images: samples with an `image` [3, H, W].
        masks: how they are drawn.
        patch_size: pixels a side of a patch.
    """

    def __init__(self, images: Dataset, masks: Masks, patch_size: int) -> None:
        self.images, self.masks, self.patch_size = images, masks, patch_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> MaskedImage:
        image: Tensor = self.images[index].image
        return MaskedImage(image, self.masks.draw(grid_of(image, self.patch_size)))


@torch.compiler.disable  # how many patches are hidden is known only by looking
def split(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [B, h, w] with equally many hidden patches -> the numbers of the visible and of the hidden ones.

    Returns:
        [B, n] and [B, N - n] int64, ascending, row by row from 0.
    """
    flat = mask.flatten(1)
    hidden = int(flat[0].sum())
    order = flat.long().sort(dim=1, stable=True).indices
    return order[:, : flat.shape[1] - hidden], order[:, flat.shape[1] - hidden :]
