import decimal
import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitrail.compress import CodecError
from vitrail.compress.coding.frequencies import (
    EXPONENTIALS,
    MARGIN,
    OFFSETS,
    choose_offset,
    code_length,
    frequencies,
    integer_histogram,
    levels,
    margin,
    normalize,
)


def test_the_table_is_the_correctly_rounded_exponential():
    with decimal.localcontext(prec=60):
        exact = [(decimal.Decimal(-j) / 16).exp() * 2**24 for j in range(len(EXPONENTIALS))]
    assert EXPONENTIALS.tolist() == [int(value.to_integral_value(decimal.ROUND_HALF_EVEN)) for value in exact]
    assert EXPONENTIALS[-1] == 0 < EXPONENTIALS[-2]


def test_the_table_never_changes():
    """Files written yesterday depend on every entry."""
    digest = hashlib.sha256(EXPONENTIALS.astype("<i8").tobytes()).hexdigest()
    assert (len(EXPONENTIALS), digest[:16]) == (279, "7ef5cf3cc87427f9")


@settings(max_examples=60)
@given(arrays.arrays(np.int16, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=st.integers(0, 278)))
def test_frequencies_are_exact(below):
    below[:, 0] = 0  # one symbol of each distribution is the greatest
    for row, result in zip(below, frequencies(below), strict=True):
        weights = [int(EXPONENTIALS[level]) for level in row]
        target = 2**24 - len(weights)
        expected = [int(Fraction(weight * target, sum(weights))) for weight in weights]
        expected[weights.index(max(weights))] += target - sum(expected)
        assert result.tolist() == expected
        assert sum(expected) == target


def test_extreme_weights_neither_overflow_nor_vanish():
    weights = np.array([[2**38 - 1, 1, 0], [0, 0, 1], [2**36, 2**36, 2**37]])
    assert normalize(weights).sum(axis=1).tolist() == [2**24 - 3] * 3
    assert normalize(weights)[1].tolist() == [0, 0, 2**24 - 3]
    assert normalize(np.ones((1, 256), dtype=np.int64)).tolist() == [[65535] * 256]


@pytest.mark.parametrize("weights", [[0, 0], [-1, 5], [2**38, 1]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(CodecError, match="histogram"):
        normalize(np.array([weights]))


def test_levels_by_hand():
    # Offset 0: boundaries at 1/32 of a step above each multiple of 1/16.
    logits = np.array([[0.0, 1 / 16, 0.5 / 16, 0.03 / 16, 0.04 / 16, -1.0, -1000.0]])
    assert levels(logits, 0).tolist() == [[1, 0, 0, 1, 0, 17, 278]]


@given(st.integers(0, OFFSETS - 1), st.integers(0, 2**32 - 1))
def test_logits_beyond_the_margin_round_alike_whatever_disturbs_them(offset, seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=4, size=(20, 32))
    room = margin(logits, offset)
    disturbed = logits + generator.uniform(-0.99 * room, 0.99 * room, logits.shape)
    assert (levels(logits, offset) == levels(disturbed, offset)).all()


def test_the_margin_is_the_distance_at_which_rounding_changes():
    logits = np.random.default_rng(0).normal(scale=4, size=(50, 64))
    room = margin(logits, 3)
    rounded = np.floor(logits * 16 - 7 / 32)
    moved = [np.floor((logits + sign * factor * room) * 16 - 7 / 32) for factor in (0.999, 1.001) for sign in (1, -1)]
    assert [(other == rounded).all() for other in moved[:2]] == [True, True]
    assert not all((other == rounded).all() for other in moved[2:])


def test_the_first_offset_that_leaves_the_margin_is_chosen():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(100, 64))
    assert choose_offset(logits) == 0
    for blocked in range(5):  # a logit on a boundary of each of the first offsets
        logits[blocked, 0] = (3 + (2 * blocked + 1) / 32) / 16 + MARGIN / 4
        assert margin(logits, blocked) < MARGIN
        assert choose_offset(logits) == blocked + 1


def test_a_million_logits_leave_the_margin():
    logits = np.random.default_rng(1).normal(scale=3, size=(4096, 256))
    assert margin(logits, choose_offset(logits)) >= MARGIN


def test_an_untrained_prior_is_far_from_every_boundary():
    assert choose_offset(np.zeros((4, 8))) == 0
    assert margin(np.zeros((4, 8)), 0) == 1 / 512


def test_logits_on_all_boundaries_are_refused():
    boundaries = (np.arange(OFFSETS) * 2 + 1) / 512
    with pytest.raises(CodecError, match="rounding boundary"):
        choose_offset(boundaries[None])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
def test_logits_that_are_not_finite_are_refused(value):
    with pytest.raises(CodecError, match="weights are broken"):
        choose_offset(np.array([[0.0, value]]))


@pytest.mark.filterwarnings("error")
def test_broken_logits_still_make_frequencies():
    """A decoder with a broken model goes on to the check, which finds it."""
    below = levels(np.array([[np.nan, 1.0, 2.0], [np.inf, 0.0, -np.inf]]), 0)
    assert frequencies(below).sum(axis=-1).tolist() == [2**24 - 3] * 2


def test_shares_become_integers_in_proportion():
    assert integer_histogram(np.array([[0.5, 0.25, 0.0]], dtype=np.float32)).tolist() == [[2**23 + 1, 2**22 + 1, 1]]


def test_the_code_length_is_that_of_the_coders_table():
    assert code_length(np.array([2**23 - 1, 2**22 - 1, 0])) == pytest.approx(1 + 2 + 24, abs=1e-12)
