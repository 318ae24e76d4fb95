"""From the prior's logits to integer frequencies that are the same on every machine.

Floating-point logits differ from machine to machine in their last bits, and one frequency that differs ruins the rest
of a file. So the prior runs in float64, whose differences are tiny; the encoder rounds its logits to a coarse grid, of
which it chooses one of 16 offsets such that no logit lies within `MARGIN` of a rounding boundary; and from there on
everything is integers: all machines round alike, and all tables are equal.
"""

import numpy as np
from numpy.typing import NDArray

from vitrail.compress.errors import CodecError

PRECISION = 24  # bits of a probability in the range coder
STEPS = 16  # logits are rounded to 1/16: the rate grows by 0.005%
OFFSETS = 16  # of the grid, 1/16 of its step apart
MARGIN = 1e-9  # logits closer than this to a boundary are not trusted to round alike on every machine
BLOCK = 2**20  # logits that share an offset: the chance that none of 16 leaves the margin is 1e-24

Integers = NDArray[np.int64]


def _exponentials() -> Integers:
    """exp(-j / STEPS) 2^24 to the nearest integer, for j = 0 until it is 0, by integer arithmetic alone."""
    bits = 128
    ratio, term, order = 0, 1 << bits, 0
    while term:  # the series of exp(-1 / STEPS)
        ratio += term if order % 2 == 0 else -term
        order += 1
        term //= STEPS * order
    table: list[int] = []
    power = 1 << bits
    while not table or table[-1]:
        table.append((power + (1 << (bits - PRECISION - 1))) >> (bits - PRECISION))
        power = (power * ratio) >> bits
    return np.array(table, dtype=np.int64)


EXPONENTIALS = _exponentials()


def _scaled(logits: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    # Boundaries lie at odd multiples of 1/32 of the step: the logits of an untrained prior, all 0, are far from them.
    return logits * STEPS - (2 * offset + 1) / (2 * OFFSETS)


def margin(logits: NDArray[np.float64], offset: int) -> float:
    """How near the nearest of the logits comes to a rounding boundary of the grid; 1/32 at most."""
    scaled = _scaled(logits, offset)
    return float(abs(scaled - np.rint(scaled)).min(initial=0.5)) / STEPS


def choose_offset(logits: NDArray[np.float64]) -> int:
    """The first offset of the grid that keeps all logits `MARGIN` away from its rounding boundaries.

    Raises:
        CodecError: there is none, or the logits are not finite.
    """
    if not np.isfinite(logits).all() or abs(logits).max(initial=0) > 2**20:
        raise CodecError("The prior's logits are not finite, or beyond a million; its weights are broken.")
    for offset in range(OFFSETS):
        if margin(logits, offset) >= MARGIN:
            return offset
    raise CodecError(
        f"Whatever the offset, one of the prior's logits lies within {MARGIN:g} of a rounding boundary, so that other "
        "machines might not decode the file; use a prior whose logits are not on a grid of their own."
    )


def levels(logits: NDArray[np.float64], offset: int) -> NDArray[np.int16]:
    """How many steps each logit, rounded, lies below the greatest of its distribution.

    Args:
        logits: [..., V], finite.
        offset: of the grid, 0 .. 15.

    Returns:
        [..., V], 0 for the most probable symbols, at most the last index of the table of exponentials.
    """
    scaled = _scaled(logits, offset)
    with np.errstate(invalid="ignore"):  # a broken model's infinities become some integers; the check finds them
        rounded = np.floor(scaled)
        below = rounded.max(axis=-1, keepdims=True) - rounded
    return np.nan_to_num(below, nan=0.0).clip(0, len(EXPONENTIALS) - 1).astype(np.int16)


def frequencies(below: NDArray[np.int16]) -> Integers:
    """The frequencies of rounded logits, [..., V]: non-negative, summing to 2^24 - V; the coder adds 1 to each.

    Args:
        below: [..., V], what `levels` returns.
    """
    return normalize(EXPONENTIALS[below])


def normalize(weights: Integers) -> Integers:
    """Frequencies in proportion to `weights`, [..., V], summing to 2^24 - V exactly; the coder adds 1 to each.

    Each is weight * (2^24 - V) / sum, rounded down; what is then missing goes to the first of the greatest.

    Raises:
        CodecError: a weight is negative, all are 0, or they sum to more than 2^38.
    """
    symbols = weights.shape[-1]
    total = weights.sum(axis=-1, keepdims=True)
    if symbols >= 2**16 or (weights < 0).any() or (total <= 0).any() or (total > 2**38).any():
        raise CodecError(
            "Frequencies need fewer than 65,536 symbols, weights of at least 0 and a sum of 1 to 2^38; "
            "check the histogram that came with the model."
        )
    target = 2**PRECISION - symbols
    result = weights * target // total
    first = weights.argmax(axis=-1)[..., None]  # numpy's argmax is the first of equals, by definition
    missing = target - result.sum(axis=-1, keepdims=True)
    np.put_along_axis(result, first, np.take_along_axis(result, first, axis=-1) + missing, axis=-1)
    return result


def integer_histogram(shares: NDArray[np.floating]) -> Integers:
    """Shares in 0..1 as integers in proportion, 2^24 for 1, and 1 more, so that nothing counts as impossible."""
    return np.rint(shares.astype(np.float64) * 2**PRECISION).astype(np.int64) + 1


def code_length(frequency: Integers) -> float:
    """The bits that symbols of these frequencies cost, 24 - log2(frequency + 1) summed: for reports alone."""
    return float((PRECISION - np.log2(frequency + 1.0)).sum())
