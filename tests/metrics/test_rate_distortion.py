"""Bjøntegaard's deltas where they are known exactly, and the interpolation against SciPy's."""

import math

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from vitrail.errors import VitrailError
from vitrail.metrics.rate_distortion import bd_quality, bd_rate, bits_per_pixel, interpolate

CURVE = [(0.1, 26.0), (0.22, 29.1), (0.47, 31.0), (1.3, 36.5)]


def test_bits_per_pixel():
    assert bits_per_pixel(6144, 768, 512) == 0.125


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_curve_at_a_constant_factor_in_rate_differs_by_exactly_that(factor):
    scaled = [(factor * rate, quality) for rate, quality in CURVE]
    assert bd_rate(CURVE, scaled) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_a_curve_at_a_constant_distance_in_quality_differs_by_exactly_that():
    assert bd_quality(CURVE, [(rate, quality + 1.25) for rate, quality in CURVE]) == pytest.approx(1.25, abs=1e-12)


def test_straight_lines_have_the_exact_mean_over_what_they_share():
    # ln rate = q / 10 and, over 22 .. 32, q / 5 - 2.5: the difference q / 10 - 2.5 averages 0.1 over 22 .. 30.
    reference = [(math.exp(q / 10), q) for q in (20.0, 23.0, 28.0, 30.0)]
    curve = [(math.exp(q / 5 - 2.5), q) for q in (22.0, 25.0, 27.0, 32.0)]
    assert bd_rate(reference, curve) == pytest.approx(100 * math.expm1(0.1), abs=1e-9)
    # By rate: 2 to 3 in ln; q = 10 x and 5 x + 12.5, whose difference 12.5 - 5 x averages 0 over the shared 2 .. 3.
    assert bd_quality(reference, curve) == pytest.approx(0.0, abs=1e-9)


def test_the_order_of_points_does_not_matter_and_the_sign_turns():
    other = [(0.3, 28.0), (0.15, 26.5), (2.0, 35.0)]
    forth, back = bd_rate(CURVE, other), bd_rate(other[::-1], CURVE[::-1])
    assert forth > 0
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1, rel=1e-12)


def test_the_mean_is_that_of_a_fine_sum_over_scipys_interpolation():
    other = [(0.08, 25.0), (0.3, 28.0), (0.9, 33.0)]
    grid = np.linspace(26, 33, 200_001)
    means = [PchipInterpolator(q, np.log(r))(grid).mean() for r, q in (np.array(c).T for c in (CURVE, other))]
    assert bd_rate(CURVE, other) == pytest.approx(100 * math.expm1(means[1] - means[0]), rel=1e-5)


@pytest.mark.parametrize("points", [2, 3, 4, 9])
def test_the_interpolation_is_scipys(points):
    generator = np.random.default_rng(points)
    for _ in range(20):
        x, y = np.sort(generator.uniform(0, 5, points)), generator.normal(size=points)
        at = np.linspace(x[0], x[-1], 101)
        np.testing.assert_allclose(interpolate(x, y, at), PchipInterpolator(x, y)(at), rtol=0, atol=1e-11)


def test_without_a_shared_range_there_is_no_number():
    better = [(rate, quality + 20) for rate, quality in CURVE]
    assert bd_rate(CURVE, better) is None and bd_quality(CURVE, better) == pytest.approx(20)
    far = [(100 * rate, quality) for rate, quality in CURVE]
    assert bd_quality(CURVE, far) is None and bd_rate(CURVE, far) == pytest.approx(9900)
    assert bd_rate(CURVE, CURVE[:1]) is None and bd_rate(CURVE, []) is None


def test_settings_that_nobody_would_choose_are_left_out():
    worse = [*CURVE, (0.5, 30.0), (0.22, 20.0), (1.3, 36.5), (9.0, math.inf)]
    assert bd_rate(CURVE, worse) == pytest.approx(0, abs=1e-12)


def test_a_rate_of_zero_is_refused():
    with pytest.raises(VitrailError, match="not above 0"):
        bd_rate(CURVE, [(0.0, 20.0), (1.0, 30.0)])
