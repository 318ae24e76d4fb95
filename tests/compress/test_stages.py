import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.compress import CodecError
from vitrail.compress.stages import (
    MAX_STAGES,
    Scheme,
    confidence_counts,
    evenly_spread,
    marginal,
    most_confident,
    quincunx,
    raster,
)

sides = st.integers(1, 40)
numbers = st.integers(1, MAX_STAGES)


def test_five_stages_are_those_of_figure_5_4():
    expected = [
        [0, 4, 2, 4, 0, 4, 2, 4],
        [4, 3, 4, 3, 4, 3, 4, 3],
        [2, 4, 1, 4, 2, 4, 1, 4],
        [4, 3, 4, 3, 4, 3, 4, 3],
        [0, 4, 2, 4, 0, 4, 2, 4],
        [4, 3, 4, 3, 4, 3, 4, 3],
        [2, 4, 1, 4, 2, 4, 1, 4],
        [4, 3, 4, 3, 4, 3, 4, 3],
    ]
    assert quincunx(8, 8).tolist() == expected


@pytest.mark.parametrize("stages", range(1, 10))
def test_shares_double_from_stage_to_stage(stages):
    counts = torch.bincount(quincunx(32, 32, stages).flatten())
    first = 1024 >> (stages - 1)
    assert counts.tolist() == [first, *(first << stage for stage in range(stages - 1))]


@given(sides, sides, numbers)
def test_the_quincunx_parts_every_grid_exactly(height, width, stages):
    scheme = Scheme("quincunx", stages)
    stage = scheme.partition(height, width)
    counts = scheme.counts(height, width)
    assert stage.shape == (height, width)
    assert len(counts) == stages
    assert sum(counts) == height * width
    assert 0 <= stage.min() <= stage.max() < stages
    assert counts[0] > 0
    assert stage[0, 0] == 0


@given(sides, sides, st.integers(2, 12), st.data())
def test_what_is_known_after_any_stage_is_a_lattice(height, width, stages, data):
    """Figure 5.4: square lattices of spacing 2^k and, between them, their quincunxes with the centres added."""
    number = data.draw(st.integers(0, stages - 1))
    known = quincunx(height, width, stages) <= number
    level, quincunxes = divmod(stages - 1 - number, 2)
    spacing = 1 << level
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    square = (rows % spacing == 0) & (columns % spacing == 0)
    expected = square & ((rows // spacing + columns // spacing) % 2 == 0) if quincunxes else square
    assert torch.equal(known, expected)


@given(sides, sides)
def test_raster_goes_position_by_position(height, width):
    stage = raster(height, width)
    assert stage.flatten().tolist() == list(range(height * width))
    assert Scheme("raster", 1).counts(height, width) == [1] * (height * width)
    assert marginal(height, width).tolist() == [[0] * width] * height
    assert Scheme("marginal", 1).counts(height, width) == [height * width]


@given(st.integers(1, 2000), numbers, st.sampled_from(["linear", "doubling"]))
def test_confidence_counts_are_complete(positions, stages, schedule):
    counts = confidence_counts(positions, stages, schedule)
    assert len(counts) == stages
    assert sum(counts) == positions
    assert min(counts) >= 0
    assert counts[0] >= 1


def test_confidence_schedules_by_hand():
    assert confidence_counts(256, 5, "doubling") == [16, 16, 32, 64, 128]
    assert confidence_counts(256, 3, "doubling") == [64, 64, 128]
    assert confidence_counts(10, 4, "linear") == [3, 2, 3, 2]
    assert confidence_counts(1, 3, "linear") == confidence_counts(1, 3, "doubling") == [1, 0, 0]


@given(st.integers(1, 300), st.data())
def test_an_even_spread_has_even_gaps(positions, data):
    count = data.draw(st.integers(1, positions))
    chosen = evenly_spread(positions, count)
    assert chosen[0] == 0
    gaps = torch.cat([chosen, torch.tensor([positions])]).diff()
    assert gaps.min() >= positions // count
    assert gaps.max() <= -(-positions // count)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_of_equals_the_first_is_most_confident(confidence, data):
    count = data.draw(st.integers(0, len(confidence)))
    expected = sorted(sorted(range(len(confidence)), key=lambda entry: (-confidence[entry], entry))[:count])
    assert most_confident(torch.tensor(confidence), count).tolist() == expected


def test_confidence_in_floating_point_is_refused():
    with pytest.raises(TypeError, match="integers"):
        most_confident(torch.rand(4), 2)


@pytest.mark.parametrize("stages", [0, MAX_STAGES + 1])
def test_numbers_of_stages_have_limits(stages):
    with pytest.raises(CodecError, match="choose 1 to 32"):
        Scheme("quincunx", stages)
    with pytest.raises(CodecError, match="choose 1 to 32"):
        quincunx(4, 4, stages)


def test_an_empty_grid_is_refused():
    with pytest.raises(CodecError, match="0 x 5"):
        quincunx(0, 5)


def test_an_adaptive_order_has_no_fixed_partition():
    with pytest.raises(TypeError, match="depends on the picture"):
        Scheme("confidence_linear", 4).partition(4, 4)


def test_an_order_that_there_is_not_is_refused():
    with pytest.raises(CodecError, match=r"^There is no order spiral; choose one of quincunx, marginal, raster, conf"):
        Scheme("spiral", 5)
