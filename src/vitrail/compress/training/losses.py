"""What a reconstruction is trained to be (Section 5.3.3)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.metrics.reconstruction import ms_ssim

Distortion = Literal["mse", "ms_ssim"]


def distortion(kind: Distortion, images: Tensor, reconstructions: Tensor) -> Tensor:
    """The distortion of Equation 5.5, a scalar: the mean square error of values in 0..1, or 1 - MS-SSIM.

    Args:
        kind: which.
        images: [B, 3, H, W] in 0..1.
        reconstructions: of the same shape, about 0..1.

    Raises:
        VitrailError: MS-SSIM of pictures with a side below 11 pixels.
    """
    reconstructions = reconstructions.float()
    if kind == "mse":
        return F.mse_loss(reconstructions, images)
    with torch.autocast(images.device.type, enabled=False):  # variances as differences of squares: no half precision
        return 1 - ms_ssim(images, reconstructions, floor=1e-4).mean()


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """What the discriminator minimises: -(E[ln D(x)] + E[ln(1 - D(x'))]), Equation 5.7, D the sigmoid of its logits.

    Args:
        real: logits of originals, any number of maps; each counts by its mean, then all maps alike.
        fake: logits of reconstructions, the same maps.
    """
    terms = [F.softplus(-r.float()).mean() + F.softplus(f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """What the decoder minimises: -E[ln D(x')], whose gradient does not vanish where D is sure, as Equation 5.7's does.

    Args:
        fake: logits of reconstructions, any number of maps.
    """
    return torch.stack([F.softplus(-logits.float()).mean() for logits in fake]).mean()
