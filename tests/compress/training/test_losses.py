"""Losses written out."""

import math

import pytest
import torch
from pytorch_msssim import ssim

from vitrail.compress.training.losses import discriminator_loss, distortion, generator_loss
from vitrail.errors import VitrailError


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_mse_is_the_mean_square_of_values_in_0_to_1():
    images, made = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.5, 0.8]]]])
    assert distortion("mse", images, made).item() == pytest.approx((0.25 + 0.04) / 2)


def test_ms_ssim_is_taken_from_one():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    made = (images + 0.1 * torch.randn(images.shape, generator=generator)).requires_grad_()
    loss = distortion("ms_ssim", images, made)
    assert loss.item() == pytest.approx(1 - ssim(images, made, data_range=1.0).item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, made)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_ms_ssim_of_opposites_still_has_a_gradient():
    """At the start of a training, when the reconstruction may be anything."""
    images = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    made = (1 - images).requires_grad_()
    (gradient,) = torch.autograd.grad(distortion("ms_ssim", images, made), made)
    assert gradient.isfinite().all()


def test_ms_ssim_of_a_tiny_picture_is_refused():
    with pytest.raises(VitrailError, match="8 x 8 pixels"):
        distortion("ms_ssim", torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_adversarial_losses_are_equation_5_7():
    real = (torch.tensor([[2.0], [-1.0]]), torch.tensor([0.5]))
    fake = (torch.tensor([[0.3], [-3.0]]), torch.tensor([1.5]))
    first = -(math.log(sigmoid(2.0)) + math.log(sigmoid(-1.0))) / 2
    first -= (math.log(1 - sigmoid(0.3)) + math.log(1 - sigmoid(-3.0))) / 2
    second = -math.log(sigmoid(0.5)) - math.log(1 - sigmoid(1.5))
    assert discriminator_loss(real, fake).item() == pytest.approx((first + second) / 2, rel=1e-6)
    first = -(math.log(sigmoid(0.3)) + math.log(sigmoid(-3.0))) / 2
    assert generator_loss(fake).item() == pytest.approx((first - math.log(sigmoid(1.5))) / 2, rel=1e-6)
