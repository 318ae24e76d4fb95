import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from vitrail.errors import VitrailError
from vitrail.pretrain.views import STRONG, View

RAMP = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8))
WHOLE = {"size": 32, "scale": (1.0, 1.0), "flip": 0.0}


def pixels(view: View) -> torch.Tensor:
    """What `view` makes of the ramp, back in 0..255."""
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (view.build()(RAMP) * deviation + mean) * 255


def test_a_view_is_normalised_and_of_its_size():
    torch.manual_seed(0)
    image = View(size=24).build()(RAMP)
    assert image.shape == (3, 24, 24) and image.dtype == torch.float32


def test_flipped_grey_and_inverted():
    for flip, first, last in ((0.0, 0, 1), (1.0, 1, 0)):
        torch.manual_seed(0)
        shades = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 1, 3)))
        picture = View(**WHOLE | {"flip": flip}).build()(shades)
        assert (picture[0, 0, 0] < picture[0, 0, -1]) == (first < last)
    grey = pixels(View(**WHOLE, greyscale=1.0))
    assert torch.equal(grey[0].round(), grey[1].round()) and torch.equal(grey[1].round(), grey[2].round())
    assert float(pixels(View(**WHOLE, solarize=1.0)).max()) < 128.001


def test_blur_smoothes_in_proportion_to_the_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))

    def roughness(view: View) -> float:
        torch.manual_seed(1)
        return float(np.mean([view.build()(noise).diff(dim=2).abs().mean() for _ in range(5)]))

    sharp = View(scale=(1.0, 1.0))
    assert roughness(View(scale=(1.0, 1.0), blur=1.0)) < 0.7 * roughness(sharp)
    kernels = [View(size=size, blur=1.0).build().transforms[2].transforms[0].kernel_size[0] for size in (224, 32, 16)]
    assert kernels == [9, 3, 3]


def test_probability_zero_leaves_a_step_out():
    assert len(View().build().transforms) == 5 and len(STRONG.build().transforms) == 9


def test_impossible_values_are_refused():
    with pytest.raises(VitrailError, match="give the smaller number first"):
        View(scale=(0.5, 0.25))
    with pytest.raises(VitrailError, match=r"View.blur is 2"):
        View(blur=2)
