"""How close reconstructed images are to the originals, and what their indices cost."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import VitrailError

# Wang et al., 2003, by scale, the finest first.
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11  # pixels a side of MS-SSIM's window


def scales(height: int, width: int) -> int:
    """How many of MS-SSIM's five scales fit a picture: each halves it, and the last must still hold the 11 x 11 window.

    Five from 161 pixels on the short side, four from 81, three from 41, two from 21, one (plain SSIM) from 11.

    Raises:
        VitrailError: the short side is below 11 pixels.
    """
    side = min(height, width)
    if side < WINDOW:
        raise VitrailError(
            f"MS-SSIM is not defined for a picture of {width} x {height} pixels; both sides must be 11 or more."
        )
    return min(len(_WEIGHTS), 1 + int(math.log2((side - 1) / (WINDOW - 1))))


def ms_ssim(images: Tensor, others: Tensor, floor: float = 0.0) -> Tensor:
    """Multi-scale structural similarity (Wang et al., 2003) of images [B, C, H, W] in 0..1 -> [B], 1 where alike.

    Gaussian window of 11 pixels and deviation 1.5, no padding, mean over channels. Pictures too small for five scales
    use those that fit, with their weights scaled to sum to 1: comparable among pictures of one size alone. To measure,
    give float64: of bright, flat parts the variances are small differences of large squares.

    Args:
        images: [B, C, H, W] in 0..1.
        others: of the same shape.
        floor: what negative similarities of a scale are raised to; above 0 in training, since the gradient of a power
            is infinite at 0.

    Raises:
        VitrailError: the short side is below 11 pixels.
    """
    weights = _WEIGHTS[: scales(images.shape[2], images.shape[3])]
    total = 1.0 if len(weights) == len(_WEIGHTS) else sum(weights)  # all five, as published, sum to 1.0001
    result = images.new_ones(images.shape[:2])
    for scale, weight in enumerate(weights, start=1):
        luminance, contrast_structure = _similarity(images, others)
        similarity = luminance * contrast_structure if scale == len(weights) else contrast_structure
        mean = similarity.flatten(2).mean(dim=2)
        result = result * mean.clamp(min=floor) ** (weight / total)
        padding = (images.shape[2] % 2, images.shape[3] % 2)
        images, others = (F.avg_pool2d(picture, 2, padding=padding) for picture in (images, others))
    return result.mean(dim=1)


def _similarity(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term, and the product of the contrast and structure terms, of every window."""
    place = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    kernel = (-(place**2) / (2 * 1.5**2)).exp()
    kernel = kernel / kernel.sum()
    moments = torch.stack([images, others, images * images, others * others, images * others])
    flat = moments.flatten(0, 2)[:, None]  # all channels of all pictures are blurred alike
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    mean, other_mean, square, other_square, product = flat.view(5, *images.shape[:2], *flat.shape[2:])
    variances = square - mean**2 + other_square - other_mean**2
    covariance = product - mean * other_mean
    luminance = (2 * mean * other_mean + 0.01**2) / (mean**2 + other_mean**2 + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (variances + 0.03**2)


def to_decibels(similarity: float) -> float:
    """MS-SSIM, or the mean of many, in dB: -10 log10(1 - MS-SSIM), 100 at most."""
    return -10 * math.log10(max(1 - similarity, 1e-10))


def to_8_bits(images: Tensor) -> Tensor:
    """Images in about 0..1 -> the values 0..255 that a file would hold, in the same floating-point type."""
    return (images * 255).round().clamp(0, 255)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B, C, H, W] in 0..1, rounded to 8 bits -> [B]; infinite where equal.

    10 log10(255^2 / MSE), the mean over all pixels and channels of a picture.
    """
    error = (to_8_bits(images) - to_8_bits(others)).double().square().flatten(1).mean(dim=1)
    return 10 * (255**2 / error).log10()


class ReconstructionMetric:
    """PSNR, MS-SSIM, estimated rates and codebook usage, per picture and then averaged.

    Figures of a quality m < M carry the prefix `quality_<m>/`; those of the highest quality have none.

    Args:
        parts: M, sub-vectors of a token.
        centroids: V, of each.
        qualities: numbers of sub-vectors that pictures are reconstructed from, ascending.
    """

    def __init__(self, parts: int, centroids: int, qualities: tuple[int, ...]):
        self.parts, self.centroids, self.qualities = parts, centroids, qualities
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._pictures = 0
        self._counts = torch.zeros(parts, centroids, dtype=torch.int64)

    def update(
        self, images: Tensor, reconstructions: Tensor, indices: Tensor, bits: Mapping[str, Tensor] | None = None
    ) -> None:
        """Adds a batch.

        Args:
            images: [B, 3, H, W] in 0..1.
            reconstructions: [B, Q, 3, H, W] in about 0..1, one for each quality.
            indices: [B, h, w, M].
            bits: by the name of a policy, what each picture costs at each quality, [B, Q].
        """
        self._pictures += len(images)
        rounded = to_8_bits(images.double()) / 255
        pixels = images.shape[2] * images.shape[3]
        for number, quality in enumerate(self.qualities):
            others = reconstructions[:, number].double()
            self._add(quality, "psnr", psnr(images, others))
            self._add(quality, "ms_ssim", ms_ssim(rounded, to_8_bits(others) / 255))
            fixed = math.log2(self.centroids) * quality * indices[0, ..., 0].numel() / pixels
            self._add(quality, "bpp_fixed", torch.full((len(images),), fixed))
            for policy, costs in (bits or {}).items():
                self._add(quality, f"bpp_{policy}", costs[:, number] / pixels)
        first = torch.arange(self.parts) * self.centroids
        counts = (indices.cpu() + first).flatten().bincount(minlength=self._counts.numel())
        self._counts += counts.view_as(self._counts)

    def _add(self, quality: int, name: str, values: Tensor) -> None:
        prefix = "" if quality == self.qualities[-1] else f"quality_{quality}/"
        self._sums[prefix + name] += float(values.double().sum())

    def merge(self, other: Self) -> None:
        """Adds what `other` has gathered."""
        for name, value in other._sums.items():
            self._sums[name] += value
        self._pictures += other._pictures
        self._counts += other._counts

    def compute(self) -> dict[str, float]:
        """`psnr` and `ms_ssim_db` in dB, `ms_ssim`, rates in bits per pixel, `usage` and `perplexity` of the codebook.

        All but three are means over pictures. `ms_ssim_db` is -10 log10(1 - mean MS-SSIM). `bpp_fixed` is the rate of
        fixed-length codes. `usage` is the share of centroids that were chosen at all, `perplexity` the exponential of
        the entropy of their use, the mean over sub-vectors.

        Raises:
            VitrailError: no picture has been added.
        """
        if not self._pictures:
            raise VitrailError("There is nothing to measure: the evaluation had no picture; check the data set.")
        figures = {name: value / self._pictures for name, value in self._sums.items()}
        for name in [name for name in figures if name.endswith("ms_ssim")]:
            figures[f"{name}_db"] = to_decibels(figures[name])
        shares = self._counts.double() / self._counts.sum(dim=1, keepdim=True)
        figures["usage"] = float((self._counts > 0).double().mean())
        figures["perplexity"] = float(torch.special.entr(shares).sum(dim=1).exp().mean())
        return figures
