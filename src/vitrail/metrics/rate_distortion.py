"""Rates, and how far one codec's curve of quality against rate lies from another's (Bjøntegaard, VCEG-M33, 2001)."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import VitrailError

Curve = Sequence[tuple[float, float]]
Values = NDArray[np.float64]


def bits_per_pixel(size: int, width: int, height: int) -> float:
    """The rate of a file of `size` bytes that holds a picture of `width` x `height` pixels."""
    return 8 * size / (width * height)


def bd_rate(reference: Curve, curve: Curve) -> float | None:
    """By how many percent a codec's rate differs from the reference's at equal quality, the mean over qualities.

    The logarithm of the rate is interpolated as a function of quality and averaged over the qualities that both curves
    reach. The interpolation is the piecewise cubic one that keeps what rises rising (Fritsch and Carlson, 1980, with
    the three-point slopes of Fritsch and Butland, 1984; SciPy's and MATLAB's `pchip`), as in the reference software of
    HEVC and VVC; Bjøntegaard's own cubic through four points may swing between them.

    Args:
        reference: (rate, quality) of each setting, in any order; rates above 0, quality in dB.
        curve: the same of the codec to compare.

    Returns:
        Percent, negative where the codec needs fewer bits; None where the curves share no range of qualities.

    Raises:
        VitrailError: a rate is not above 0.
    """
    difference = _mean_difference(*(_points(points)[:, ::-1] for points in (reference, curve)))
    return None if difference is None else 100 * math.expm1(difference)


def bd_quality(reference: Curve, curve: Curve) -> float | None:
    """By how many dB a codec's quality differs from the reference's at equal rate, the mean over the rate's logarithm.

    Arguments and interpolation are those of `bd_rate`.

    Returns:
        dB, positive where the codec is better (with PSNR: BD-PSNR); None where the curves share no range of rates.
    """
    return _mean_difference(_points(reference), _points(curve))


def _points(curve: Curve) -> Values:
    """[n, 2] of ln(rate) and quality, both rising.

    A setting that another one equals or beats at no higher rate is left out, and so is a lossless one.
    """
    if any(not rate > 0 for rate, _ in curve):
        raise VitrailError("A curve of quality against rate has a rate that is not above 0; give bits per pixel.")
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted(curve, key=lambda point: (point[0], -point[1])):
        if math.isfinite(quality) and (not kept or quality > kept[-1][1]):
            kept.append((math.log(rate), quality))
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def _mean_difference(reference: Values, curve: Values) -> float | None:
    """The mean of curve - reference over the first column's common range, of rows (x, y) with rising x."""
    if min(len(reference), len(curve)) < 2:
        return None
    low, high = max(reference[0, 0], curve[0, 0]), min(reference[-1, 0], curve[-1, 0])
    if not low < high:
        return None
    return (_integral(curve, low, high) - _integral(reference, low, high)) / (high - low)


def _integral(points: Values, low: float, high: float) -> float:
    """Of the interpolation from `low` to `high`; Simpson's rule is exact for each of its cubics."""
    x, y = points.T
    ends = np.array([low, *x[(x > low) & (x < high)], high])
    middles = (ends[1:] + ends[:-1]) / 2
    at_ends, at_middles = interpolate(x, y, ends), interpolate(x, y, middles)
    return float((np.diff(ends) * (at_ends[:-1] + 4 * at_middles + at_ends[1:])).sum() / 6)


def interpolate(x: Values, y: Values, at: Values) -> Values:
    """The monotone piecewise cubic interpolation of [n] values `y` at rising `x`, n > 1, at places within x's range."""
    slopes = _slopes(x, y)
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    width = x[left + 1] - x[left]
    t = (at - x[left]) / width
    return (
        y[left] * (1 + 2 * t) * (1 - t) ** 2
        + y[left + 1] * t**2 * (3 - 2 * t)
        + width * (slopes[left] * t * (1 - t) ** 2 - slopes[left + 1] * t**2 * (1 - t))
    )


def _slopes(x: Values, y: Values) -> Values:
    """At each point: a weighted harmonic mean of the secants beside it, 0 where they differ in sign."""
    width, secant = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(secant, 2)
    slopes = np.zeros(len(x))
    before, after = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    same = secant[:-1] * secant[1:] > 0
    slopes[1:-1][same] = ((before + after) / (before / secant[:-1] + after / secant[1:]))[same]
    slopes[0] = _end_slope(width[0], width[1], secant[0], secant[1])
    slopes[-1] = _end_slope(width[-1], width[-2], secant[-1], secant[-2])
    return slopes


def _end_slope(width: float, next_width: float, secant: float, next_secant: float) -> float:
    """Of the parabola through three points, unless that would break monotony."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return slope
