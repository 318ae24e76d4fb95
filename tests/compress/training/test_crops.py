"""Crops are pieces of the picture, in 0..1."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.compress.training.crops import Crops
from vitrail.errors import VitrailError


@pytest.fixture
def picture() -> Image.Image:
    """Red tells the row, green the column."""
    rows, columns = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8))


def test_a_crop_that_is_not_resized_is_a_piece_of_the_picture(picture):
    transform = Crops(size=16, resized=False, flip=0.0).build()
    corners = set()
    for seed in range(40):
        torch.manual_seed(seed)
        crop = transform(picture) * 255
        assert crop.shape == (3, 16, 16) and crop.dtype == torch.float32
        top, left = crop[0, 0, 0].round().int().item(), crop[1, 0, 0].round().int().item()
        rows, columns = torch.meshgrid(torch.arange(16.0) + top, torch.arange(16.0) + left, indexing="ij")
        torch.testing.assert_close(crop[:2], torch.stack([rows, columns]), rtol=0, atol=1e-3)
        corners.add((top, left))
    assert len(corners) > 30


def test_flips(picture):
    crop = Crops(size=32, resized=False, flip=1.0).build()(picture)
    assert (crop[1, 0].diff() < 0).all()


def test_resized_crops_show_more_of_the_picture(picture):
    torch.manual_seed(0)
    whole = Crops(size=16, resized=True, scale=(0.99, 1.0), flip=0.0).build()(picture) * 255
    assert whole.shape == (3, 16, 16) and whole[1].max() - whole[1].min() > 35


def test_the_centre(picture):
    centre = Crops(size=16).centre()(picture) * 255
    assert centre[:2, 0, 0].tolist() == pytest.approx([12, 22]) and centre[:2, -1, -1].tolist() == pytest.approx(
        [27, 37]
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (63, 64)])
def test_small_pictures_are_enlarged(size):
    crops = Crops(size=64, resized=False)
    for transform in (crops.build(), crops.centre()):
        assert transform(Image.new("RGB", size, (255, 255, 255))).eq(1).all()
        assert transform(Image.new("RGB", size)).shape == (3, 64, 64)


def test_a_size_that_cannot_be_cut_is_refused():
    with pytest.raises(VitrailError, match="Crops of 40 pixels cannot be cut into patches; choose a multiple of 16"):
        Crops(size=40)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"flip": 7}, "Crops.flip is 7; it must be at least 0 and at most 1."),
        ({"scale": (0.0, 1.0)}, "Crops.scale is 0.0; it must be above 0 and at most 1."),
        ({"scale": (0.5, 1.5)}, "Crops.scale is 1.5; it must be above 0 and at most 1."),
        ({"scale": (0.5, 0.1)}, "Crops.scale is 0.5 to 0.1; give the smaller number first."),
    ],
)
def test_shares_and_probabilities_that_are_none_are_refused(fields, said):
    with pytest.raises(VitrailError) as refused:
        Crops(**fields)
    assert str(refused.value) == said
