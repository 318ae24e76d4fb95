import random

import pytest
import torch

from vitrail.data.samples import UnlabelledImage
from vitrail.errors import VitrailError
from vitrail.pretrain.masks import MaskedImages, Masks, split


@pytest.mark.parametrize("kind", ["block", "uniform"])
@pytest.mark.parametrize("grid", [(14, 14), (28, 28), (8, 8), (5, 9), (1, 7), (2, 1)])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.4, 0.5, 0.75, 0.99])
def test_the_number_of_hidden_patches_is_exact(kind, grid, ratio):
    random.seed(0)
    count = min(max(round(ratio * grid[0] * grid[1]), 1), grid[0] * grid[1] - 1)
    for _ in range(8):
        mask = Masks(kind, ratio).draw(grid)
        assert mask.shape == grid and mask.dtype == torch.bool
        assert int(mask.sum()) == count


def test_half_of_an_even_grid_and_its_complement_are_equally_large():
    masks = torch.stack([Masks().draw((14, 14)) for _ in range(16)])
    visible, hidden = split(masks)
    assert visible.shape == hidden.shape == (16, 98)
    both = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(196).expand(16, -1))  # disjoint, and together all
    assert masks.flatten(1).gather(1, hidden).all() and not masks.flatten(1).gather(1, visible).any()
    assert torch.equal(hidden, hidden.sort(dim=1).values)


def test_blocks_stay_within_their_limits(monkeypatch):
    """Each block alone, by what `_add_block` adds to an empty mask."""
    random.seed(1)
    sizes = set()
    for _ in range(2000):
        mask = torch.zeros(14, 14, dtype=torch.bool)
        if Masks()._add_block(mask, left=98):
            rows, columns = mask.any(dim=1).sum(), mask.any(dim=0).sum()
            assert int(mask.sum()) == rows * columns  # a rectangle
            assert 0.2 < rows / columns < 5  # 0.3 to 1 / 0.3 before rounding to whole patches
            sizes.add(int(mask.sum()))
    assert min(sizes) == 16 and 72 <= max(sizes) <= 75


def test_a_block_adds_no_more_than_what_is_left():
    random.seed(2)
    for _ in range(300):
        mask = Masks("uniform", 0.5).draw((14, 14))
        before = int(mask.sum())
        found = Masks(least=2)._add_block(mask, left=5)
        assert (0 < int(mask.sum()) - before <= 5) if found else int(mask.sum()) == before


def test_blocks_are_more_compact_than_single_patches():
    """Neighbours side by side that agree: half of them by chance, four fifths and more in blocks."""

    def agreement(masks: Masks) -> float:
        drawn = torch.stack([masks.draw((14, 14)) for _ in range(50)])
        return float((drawn[:, :, 1:] == drawn[:, :, :-1]).double().mean())

    random.seed(3)
    assert agreement(Masks("block")) > 0.8
    assert agreement(Masks("uniform")) == pytest.approx(97 / 195, abs=0.02)


def test_uniform_masks_hide_every_patch_equally_often():
    random.seed(4)
    share = torch.stack([Masks("uniform", 0.75).draw((4, 4)) for _ in range(4000)]).double().mean(dim=0)
    torch.testing.assert_close(share, torch.full((4, 4), 0.75, dtype=torch.double), rtol=0, atol=0.035)  # 5 sigma


def test_masks_follow_the_seed():
    drawn = []
    for seed in (5, 5, 6):
        random.seed(seed)
        drawn.append(Masks().draw((14, 14)))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_grid_of_an_odd_picture_is_rounded_up():
    sample = MaskedImages([UnlabelledImage(torch.zeros(3, 33, 47))], Masks(), patch_size=16)[0]
    assert sample.mask.shape == (3, 3) and int(sample.mask.sum()) == round(9 / 2)


def test_impossible_masks_are_refused():
    with pytest.raises(VitrailError, match="swap least and most"):
        Masks(least=20, most=10)
    with pytest.raises(VitrailError, match=r"Masks.ratio is 1"):
        Masks(ratio=1)
    with pytest.raises(VitrailError, match="one patch cannot be masked"):
        Masks().draw((1, 1))
