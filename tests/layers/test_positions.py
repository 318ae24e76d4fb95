"""Positions against the formula and against timm's resampling."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from vitrail.layers.positions import LearnedPositions, SinusoidalPositions, resample_positions, sinusoids


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (14, 14)])
def test_sinusoids_are_their_formula(height: int, width: int) -> None:
    encoding = sinusoids(height, width, 32)
    assert encoding.shape == (64, height, width)
    for channel in range(64):
        for y in range(height):
            for x in range(width):
                place, side = ((y, height), (x, width))[channel // 32]
                within = channel % 32
                angle = 2 * math.pi * (place + 1) / (side + 1e-6) / 10000 ** (2 * (within // 2) / 32)
                expected = math.cos(angle) if within % 2 else math.sin(angle)
                assert abs(encoding[channel, y, x].item() - expected) < 2e-6


def test_sinusoidal_positions_project_the_encoding_place_by_place() -> None:
    positions = SinusoidalPositions(8)
    picture = positions(2, 3)
    assert picture.shape == (1, 8, 2, 3)
    encoding = sinusoids(2, 3, 32)
    weight = positions.projection.weight[:, :, 0, 0]
    torch.testing.assert_close(picture[0, :, 1, 2], weight @ encoding[:, 1, 2] + positions.projection.bias)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (14, 9)])
def test_sinusoidal_positions_added_by_row_and_column_are_the_same(height: int, width: int) -> None:
    positions = SinusoidalPositions(8).double()
    tokens = torch.randn(2, height, width, 8, dtype=torch.float64)
    expected = tokens + positions(height, width).permute(0, 2, 3, 1)
    assert positions.add_to(tokens) is tokens
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-14)


def test_learned_positions_are_the_table_on_their_own_grid() -> None:
    positions = LearnedPositions(4, (2, 3), leading=1)
    assert torch.equal(positions(2, 3).flatten(2).mT, positions.table[:, 1:])
    assert torch.equal(positions.before(), positions.table[:, :1])
    assert 0.005 < positions.table.std() < 0.05


@pytest.mark.parametrize("leading", [0, 2])
@pytest.mark.parametrize("new", [(2, 2), (7, 5), (4, 5), (9, 9)])
def test_resampled_positions_are_timms(leading: int, new: tuple[int, int]) -> None:
    positions = LearnedPositions(6, (4, 5), leading)
    expected = resample_abs_pos_embed(positions.table, list(new), [4, 5], num_prefix_tokens=leading)
    assert torch.equal(resample_positions(positions.table, leading, (4, 5), new), expected)
    torch.testing.assert_close(positions(*new).flatten(2).mT, expected[:, leading:], rtol=0, atol=0)
