"""How far apart two sets of pictures are by their features: FID, KID, and HiFiC's patches for both."""

import torch
from torch import Tensor

from vitrail.errors import VitrailError

_ROWS = 2048  # of a kernel matrix in memory at once


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """The Fréchet distance of the Gaussians that fit two sets of features (FID: Heusel et al., 2017), in float64.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), with unbiased covariances. With C = A^T A and C' = B^T B the last trace is
    the sum of the singular values of A B^T: no root of a matrix, and exact where there are fewer pictures than
    features.

    Args:
        features: [n, d], n > 1.
        others: [m, d], m > 1.

    Raises:
        VitrailError: there are fewer than two rows, or the numbers of features differ.
    """
    (mean, root), (other_mean, other_root) = (_moments(rows) for rows in _checked(features, others))
    cross = torch.linalg.svdvals(root @ other_root.T).sum()
    distance = (mean - other_mean).square().sum() + root.square().sum() + other_root.square().sum() - 2 * cross
    return float(distance.clamp(min=0))


def kernel_distance(features: Tensor, others: Tensor) -> float:
    """The squared maximum mean discrepancy of two sets of features by the kernel (x . y / d + 1)^3, in float64.

    This is KID (Bińkowski et al., 2018), its unbiased estimate from all rows at once, of which the usual means over
    random subsets are noisier estimates; it may be slightly negative.

    Args:
        features: [n, d], n > 1.
        others: [m, d], m > 1.

    Raises:
        VitrailError: there are fewer than two rows, or the numbers of features differ.
    """
    features, others = _checked(features, others)
    count, other_count = len(features), len(others)
    within = (_kernel_sum(features, features) - _kernel_diagonal(features)) / (count * (count - 1))
    within_others = (_kernel_sum(others, others) - _kernel_diagonal(others)) / (other_count * (other_count - 1))
    return within + within_others - 2 * _kernel_sum(features, others) / (count * other_count)


def hific_patches(image: Tensor, size: int = 256) -> Tensor:
    """The patches of a picture for FID and KID as in HiFiC (Mentzer et al., 2020, FID/256).

    floor(H / size) x floor(W / size) patches side by side from the upper left corner, then, shifted by half a patch in
    both axes, one row and one column fewer.

    Args:
        image: [C, H, W].
        size: pixels a side.

    Returns:
        [n, C, size, size]; n is 0 where a side of the picture is below `size`.
    """
    rows, columns, half = image.shape[1] // size, image.shape[2] // size, size // 2
    places = [(size * row, size * column) for row in range(rows) for column in range(columns)]
    places += [(half + size * row, half + size * column) for row in range(rows - 1) for column in range(columns - 1)]
    patches = [image[:, y : y + size, x : x + size] for y, x in places]
    return torch.stack(patches) if patches else image.new_empty(0, len(image), size, size)


def _checked(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    if min(len(features), len(others)) < 2 or features.shape[1] != others.shape[1]:
        raise VitrailError(
            f"A distance of two sets of pictures needs two or more of each and the same features of all, not "
            f"{list(features.shape)} and {list(others.shape)}; give more pictures, or larger ones."
        )
    return features.double(), others.double()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [d], and a root A of the covariance A^T A, at most [d, d]."""
    mean = features.mean(dim=0)
    return mean, torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R


def _kernel(products: Tensor, width: int) -> Tensor:
    return (products / width + 1) ** 3


def _kernel_sum(features: Tensor, others: Tensor) -> float:
    return sum(float(_kernel(rows @ others.T, features.shape[1]).sum()) for rows in features.split(_ROWS))


def _kernel_diagonal(features: Tensor) -> float:
    return float(_kernel(features.square().sum(dim=1), features.shape[1]).sum())
