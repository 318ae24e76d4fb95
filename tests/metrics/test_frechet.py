"""FID and KID against closed forms and a naive double loop; HiFiC's patches pixel by pixel."""

import pytest
import torch

from vitrail.errors import VitrailError
from vitrail.metrics.frechet import frechet_distance, hific_patches, kernel_distance


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows whose mean is exactly 0 and whose unbiased covariance is exactly 1, to rounding."""
    rows = gaussian(n, d, seed)
    rows = rows - rows.mean(dim=0)
    return torch.linalg.qr(rows).Q * (n - 1) ** 0.5


def test_diagonal_gaussians_have_a_closed_form():
    deviations, others = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.25, 0.5])
    shift = torch.tensor([1.0, -2.0, 0.5])
    first, second = whitened(50, 3, 0) * deviations, whitened(80, 3, 1) * others + shift
    expected = shift.square().sum() + (deviations - others).square().sum()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-12)


def test_general_gaussians_match_the_root_of_the_product():
    mix, other_mix = gaussian(4, 4, 2), gaussian(4, 4, 3)
    first, second = whitened(40, 4, 4) @ mix, whitened(30, 4, 5) @ other_mix + 1
    product = (mix.T @ mix) @ (other_mix.T @ other_mix)
    root = torch.linalg.eigvals(product).real.sqrt().sum()
    expected = 4 + (mix.T @ mix).trace() + (other_mix.T @ other_mix).trace() - 2 * root
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-10)


def test_fewer_pictures_than_features():
    """Covariances of rank 4 in 50 dimensions, in directions that have nothing in common."""
    first, second = torch.zeros(5, 50), torch.zeros(5, 50)
    first[:, :4], second[:, 10:14] = whitened(5, 4, 6).float(), 3 * whitened(5, 4, 7).float()
    assert frechet_distance(first, second) == pytest.approx(4 + 36, rel=1e-5)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-5)


def test_kernel_distance_is_the_naive_double_loop():
    first, second = gaussian(6, 5, 8), gaussian(4, 5, 9) + 0.3

    def kernel(x, y):
        return (float(x @ y) / 5 + 1) ** 3

    def within(rows):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(x, y) for x in first for y in second) / 24
    assert kernel_distance(first, second) == pytest.approx(within(first) + within(second) - 2 * across, rel=1e-12)


def test_kernel_distance_is_the_same_in_pieces(monkeypatch):
    first, second = gaussian(30, 3, 10), gaussian(20, 3, 11)
    whole = kernel_distance(first, second)
    monkeypatch.setattr("vitrail.metrics.frechet._ROWS", 7)
    assert kernel_distance(first, second) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    values = [kernel_distance(gaussian(40, 2, 2 * seed), gaussian(40, 2, 2 * seed + 1)) for seed in range(100, 160)]
    assert abs(sum(values) / 60) < 0.1 < max(values) and min(values) < 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_too_few_pictures_are_refused(distance):
    with pytest.raises(VitrailError, match=r"needs two or more of each .* not \[1, 3\] and \[5, 3\]"):
        distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_patches_are_those_of_hific():
    image = torch.arange(3 * 11 * 14).view(3, 11, 14)
    patches = hific_patches(image, 4)
    places = [(y, x) for y in (0, 4) for x in (0, 4, 8)] + [(2, 2), (2, 6)]
    assert patches.shape == (8, 3, 4, 4)
    for patch, (y, x) in zip(patches, places, strict=True):
        assert torch.equal(patch, image[:, y : y + 4, x : x + 4])


def test_kodaks_pictures_give_eight_patches_and_small_ones_none():
    assert len(hific_patches(torch.zeros(3, 512, 768))) == 2 * 3 + 1 * 2
    assert hific_patches(torch.zeros(3, 255, 768)).shape == (0, 3, 256, 256)
