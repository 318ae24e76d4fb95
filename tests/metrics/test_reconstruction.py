"""Figures of reconstructions against pytorch-msssim, and written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_msssim import ms_ssim as reference_ms_ssim
from pytorch_msssim import ssim as reference_ssim
from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim

from vitrail.errors import VitrailError
from vitrail.metrics.reconstruction import ReconstructionMetric, ms_ssim, psnr, scales, to_8_bits


def pair(height: int, width: int, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    others = images + noise * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return images, others.clamp(0, 1)


@pytest.mark.parametrize("size", [(161, 161), (176, 163), (201, 256)])
def test_ms_ssim_is_the_librarys(size):
    images, others = pair(*size)
    expected = reference_ms_ssim(images, others, data_range=1.0, size_average=False)
    torch.testing.assert_close(ms_ssim(images, others), expected, rtol=0, atol=1e-6)


def test_one_scale_is_plain_ssim():
    images, others = pair(20, 17)
    expected = reference_ssim(images, others, data_range=1.0, size_average=False)
    torch.testing.assert_close(ms_ssim(images, others), expected, rtol=0, atol=1e-6)


def test_ssim_of_one_window_written_out():
    images, others = pair(11, 11)
    kernel = [math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)]
    weights = torch.tensor([[a * b for a in kernel] for b in kernel], dtype=torch.float64)
    weights = weights / weights.sum()
    values = []
    for x, y in zip(images[0], others[0], strict=True):
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        values.append(luminance * (2 * covariance + 9e-4) / (var_x + var_y + 9e-4))
    torch.testing.assert_close(ms_ssim(images, others)[0], torch.stack(values).mean())


def test_small_pictures_use_the_scales_that_fit():
    sides = [(161, 5), (160, 4), (81, 4), (80, 3), (41, 3), (40, 2), (21, 2), (20, 1), (11, 1)]
    assert [scales(side, 500) for side, _ in sides] == [count for _, count in sides]
    images, others = pair(21, 26)
    window = _fspecial_gauss_1d(11, 1.5).repeat(3, 1, 1, 1)
    _, contrast = _ssim(images, others, 1.0, window, size_average=False)
    coarse = (F.avg_pool2d(picture, 2, padding=(1, 0)) for picture in (images, others))
    similarity, _ = _ssim(*coarse, 1.0, window, size_average=False)
    weights = [0.0448 / (0.0448 + 0.2856), 0.2856 / (0.0448 + 0.2856)]
    expected = (contrast ** weights[0] * similarity ** weights[1]).mean(dim=1)
    torch.testing.assert_close(ms_ssim(images, others), expected, rtol=0, atol=1e-6)


def test_a_picture_below_the_window_is_refused():
    with pytest.raises(VitrailError, match="not defined for a picture of 30 x 10 pixels; both sides must be 11"):
        ms_ssim(torch.zeros(1, 3, 10, 30), torch.zeros(1, 3, 10, 30))


def test_a_floor_keeps_gradients_finite():
    images = torch.rand(1, 1, 24, 24, dtype=torch.float64)
    others = (1 - images).requires_grad_()  # opposite: negative similarity at every scale
    (gradient,) = torch.autograd.grad(ms_ssim(images, others, floor=1e-4).sum(), others)
    assert gradient.isfinite().all()
    (broken,) = torch.autograd.grad(ms_ssim(images, others).sum(), others)
    assert not broken.isfinite().all() or broken.eq(0).all()


def test_psnr_is_of_8_bits():
    images = torch.tensor([0, 100, 200, 255]).view(1, 1, 2, 2) / 255
    others = (torch.tensor([0.4, 103.2, 196.4, 300.0]).view(1, 1, 2, 2)) / 255
    # Rounded and clamped: 0, 103, 196, 255; squared errors 0, 9, 16, 0.
    assert to_8_bits(others).flatten().tolist() == [0, 103, 196, 255]
    assert psnr(images, others).item() == pytest.approx(10 * math.log10(255**2 / (25 / 4)), rel=1e-9)
    assert psnr(images, images).item() == math.inf


def outputs(count: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    noisy = images[:, None] + torch.tensor([0.2, 0.1]).view(1, 2, 1, 1, 1) * torch.randn(
        count, 2, 3, 32, 32, generator=generator
    )
    indices = torch.randint(0, 3, (count, 2, 2, 2), generator=generator)
    bits = {"quincunx": torch.rand(count, 2, generator=generator) * 100}
    return {"images": images, "reconstructions": noisy, "indices": indices, "bits": bits}


def test_figures_are_means_over_pictures_by_quality():
    first, second = outputs(3, 0), outputs(1, 1)
    metric, other = ReconstructionMetric(2, 4, (1, 2)), ReconstructionMetric(2, 4, (1, 2))
    metric.update(**first)
    other.update(**second)
    metric.merge(other)
    figures = metric.compute()
    images = torch.cat([first["images"], second["images"]])
    made = torch.cat([first["reconstructions"], second["reconstructions"]])
    rounded = to_8_bits(images.double()) / 255
    bits = torch.cat([first["bits"]["quincunx"], second["bits"]["quincunx"]])
    for number, prefix in enumerate(("quality_1/", "")):
        assert figures[f"{prefix}psnr"] == pytest.approx(psnr(images, made[:, number]).mean().item(), rel=1e-6)
        similarity = ms_ssim(rounded, to_8_bits(made[:, number].double()) / 255).mean().item()
        assert figures[f"{prefix}ms_ssim"] == pytest.approx(similarity, rel=1e-6)
        assert figures[f"{prefix}ms_ssim_db"] == pytest.approx(-10 * math.log10(1 - similarity), rel=1e-5)
        assert figures[f"{prefix}bpp_quincunx"] == pytest.approx(bits[:, number].mean().item() / 1024, rel=1e-6)
        # Two bits an index, four tokens.
        assert figures[f"{prefix}bpp_fixed"] == pytest.approx(2 * 4 * (number + 1) / 1024)
    assert figures["usage"] == 0.75  # the fourth centroid is never drawn
    indices = torch.cat([first["indices"], second["indices"]]).flatten(0, 2)
    perplexities = []
    for part in range(2):
        shares = [(indices[:, part] == centroid).double().mean().item() for centroid in range(3)]
        perplexities.append(math.exp(-sum(share * math.log(share) for share in shares)))
    assert figures["perplexity"] == pytest.approx(sum(perplexities) / 2)


def test_ms_ssim_while_training_is_right_where_pictures_are_bright_and_flat():
    generator = torch.Generator().manual_seed(0)
    first, second = (254 - torch.randint(0, 2, (1, 3, 200, 200), generator=generator) for _ in range(2))
    metric = ReconstructionMetric(1, 2, (1,))
    metric.update(first / 255, second[:, None] / 255, torch.zeros(1, 2, 2, 1, dtype=torch.int64))
    expected = ms_ssim(first.double() / 255, second.double() / 255).item()
    assert metric.compute()["ms_ssim"] == pytest.approx(expected, abs=1e-8)


def test_nothing_to_measure_is_said():
    with pytest.raises(VitrailError, match="the evaluation had no picture"):
        ReconstructionMetric(2, 4, (2,)).compute()
