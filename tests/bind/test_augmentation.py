"""Crops that several pictures share."""

import numpy as np
import torch
from PIL import Image

from vitrail.bind.augmentation import Crop, erase


def gradient(height, width):
    """A picture whose values are where they are: row + 1000 * column, in shares of its size."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(((rows + 0.5) / height + 1000 * (columns + 0.5) / width).astype(np.float32))


def test_the_central_square():
    picture = Image.fromarray(np.arange(12, dtype=np.float32).reshape(2, 6))
    crop = Crop.centre(2, 6)
    assert np.asarray(crop.apply(picture, 2, Image.Resampling.BILINEAR)).tolist() == [[2, 3], [8, 9]]
    mirrored = Crop(crop.top, crop.left, crop.height, crop.width, flipped=True)
    assert np.asarray(mirrored.apply(picture, 2, Image.Resampling.BILINEAR)).tolist() == [[3, 2], [9, 8]]


def test_pictures_of_two_sizes_are_cropped_alike():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        crop = Crop.random(480, 640, generator, scale=(0.3, 1.0))
        large, small = (
            np.asarray(crop.apply(gradient(*size), 8, Image.Resampling.BILINEAR)) for size in ((480, 640), (240, 320))
        )
        for part in (np.floor(large / 1000 * 640), large % 1):
            assert part.std() > 0
        np.testing.assert_allclose(large, small, atol=1000 * 1.0 / 320)
        # the middle of the crop is where it says, mirrored or not
        middle = crop.top + crop.height / 2 + 1000 * (crop.left + crop.width / 2)
        np.testing.assert_allclose(large.mean(), middle, atol=1000 * 0.5 / 320)


def test_random_crops_fill_the_ranges():
    generator = torch.Generator().manual_seed(1)
    crops = [Crop.random(100, 150, generator, scale=(0.2, 0.5), ratio=(0.5, 2.0)) for _ in range(500)]
    areas = np.array([crop.height * crop.width for crop in crops])
    ratios = np.array([crop.width * 150 / (crop.height * 100) for crop in crops])
    assert 0.2 <= areas.min() < 0.21
    assert 0.49 < areas.max() <= 0.5
    assert 0.5 <= ratios.min() < 0.52
    assert 1.95 < ratios.max() <= 2.0
    assert 0.45 < np.mean([crop.flipped for crop in crops]) < 0.55
    for place, length in (("top", "height"), ("left", "width")):
        ends = np.array([[getattr(crop, place), getattr(crop, place) + getattr(crop, length)] for crop in crops])
        assert 0 <= ends.min() < 0.01
        assert 0.99 < ends.max() <= 1 + 1e-12


def test_a_crop_that_cannot_be_is_the_central_square():
    crop = Crop.random(10, 1000, torch.Generator().manual_seed(0), scale=(1.0, 1.0), flip=0.0)
    assert crop == Crop.centre(10, 1000)
    assert Crop.random(10, 1000, torch.Generator().manual_seed(0), scale=(1.0, 1.0), flip=1.0).flipped


def test_everything_comes_from_the_generator():
    state = torch.get_rng_state()
    first, again = (Crop.random(20, 30, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == again
    picture = torch.ones(1, 20, 20)
    assert erase(picture, torch.Generator().manual_seed(5), 1.0).equal(
        erase(picture, torch.Generator().manual_seed(5), 1.0)
    )
    assert torch.get_rng_state().equal(state)


def test_erasing():
    generator = torch.Generator().manual_seed(0)
    picture = torch.ones(1, 60, 60)
    shares = []
    for _ in range(300):
        zeros = erase(picture, generator, 0.25)[0] == 0
        shares.append(float(zeros.double().mean()))
        rows, columns = zeros.any(dim=1).sum(), zeros.any(dim=0).sum()
        assert rows * columns == zeros.sum()  # a rectangle
    assert picture.min() == 1
    assert 0.19 < np.mean(np.array(shares) > 0) < 0.31
    erased = [share for share in shares if share]
    assert 0.01 < min(erased) < 0.06
    assert 0.25 < max(erased) < 0.36
