"""From the prior's logits to integer frequencies that are the same on every machine.

Floating-point logits differ from machine to machine in their last bits, and one frequency that differs ruins the rest
of a file. So the prior runs in float64, whose differences are tiny; the encoder rounds its logits to a coarse grid, of
which it chooses one of 16 offsets such that no logit lies within `MARGIN` of a rounding boundary; and from there on
everything is integers: all machines round alike, and all tables are equal.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitrail.compress.errors import CodecError

PRECISION = 24  # bits of a probability in the range coder
MAX_SYMBOLS = 2**16 - 1  # of a distribution
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
_WEIGHTS = EXPONENTIALS.astype(np.float64)
_CACHED = 2**15  # numbers that are worked on together


def _scaled(logits: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    # Boundaries lie at odd multiples of 1/32 of the step: the logits of an untrained prior, all 0, are far from them.
    scaled = logits * STEPS
    scaled -= (2 * offset + 1) / (2 * OFFSETS)
    return scaled


def _pieces(rows: NDArray) -> Iterator[slice]:
    """Slices of the rows of [n, V], few enough to stay in the processor's cache through several operations."""
    size = max(1, _CACHED // rows.shape[1])
    return (slice(begin, begin + size) for begin in range(0, len(rows), size))


def margin(logits: NDArray[np.float64], offset: int) -> float:
    """How near the nearest of the logits comes to a rounding boundary of the grid; 1/32 at most."""
    rows, nearest = logits.reshape(-1, logits.shape[-1]), 0.5
    for piece in _pieces(rows):
        scaled = _scaled(rows[piece], offset)
        scaled -= np.rint(scaled)
        nearest = min(nearest, float(np.abs(scaled, out=scaled).min()))
    return nearest / STEPS


def choose_offset(logits: NDArray[np.float64]) -> int:
    """The first offset of the grid that keeps all logits `MARGIN` away from its rounding boundaries.

    Raises:
        CodecError: there is none, or the logits are not finite.
    """
    if logits.size and not max(logits.max(), -logits.min()) <= 2**20:  # nor where one is not a number
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
    rows = logits.reshape(-1, logits.shape[-1])
    result = np.empty(rows.shape, dtype=np.int16)
    with np.errstate(invalid="ignore"):  # a broken model's infinities become some integers; the check finds them
        for piece in _pieces(rows):
            scaled = _scaled(rows[piece], offset)
            np.floor(scaled, out=scaled)
            greatest = scaled.max(axis=1, keepdims=True)
            np.subtract(greatest, scaled, out=scaled)
            if not np.isfinite(greatest).all():
                np.nan_to_num(scaled, copy=False, nan=0.0)
            result[piece] = np.minimum(scaled, len(EXPONENTIALS) - 1, out=scaled)
    return result.reshape(logits.shape)


def frequencies(below: NDArray[np.int16]) -> Integers:
    """What `normalize` makes of the rounded logits' exponentials, [..., V], in less time.

    The integers stay below 2^53, so that float64 holds products, sums and differences exactly. A quotient a / b of such
    integers that is no integer lies at least 1/b below the next one, and its rounding moves it by at most 2^-53 a/b,
    which is less: so it rounds down to what integer arithmetic says.

    Args:
        below: [..., V], what `levels` returns.
    """
    rows = below.reshape(-1, below.shape[-1])
    target = 2.0**PRECISION - rows.shape[1]
    result = np.empty(rows.shape, dtype=np.int64)
    for piece in _pieces(rows):
        weights = _WEIGHTS.take(rows[piece], mode="clip")
        total = weights.sum(axis=1, keepdims=True)
        weights *= target
        weights /= total
        np.floor(weights, out=weights)
        first = rows[piece].argmin(axis=1)  # the first of equals, by definition
        weights[np.arange(len(first)), first] += target - weights.sum(axis=1)
        result[piece] = weights
    return result.reshape(below.shape)


def normalize(weights: Integers) -> Integers:
    """Frequencies in proportion to `weights`, [..., V], summing to 2^24 - V exactly; the coder adds 1 to each.

    Each is weight * (2^24 - V) / sum, rounded down; what is then missing goes to the first of the greatest.

    Raises:
        CodecError: a weight is negative, all are 0, or they sum to more than 2^38.
    """
    symbols = weights.shape[-1]
    total = weights.sum(axis=-1, keepdims=True)
    if symbols > MAX_SYMBOLS or (weights < 0).any() or (total <= 0).any() or (total > 2**38).any():
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
