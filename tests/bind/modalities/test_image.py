"""Pictures for the encoder: as the official code prepares them, and at random but not by chance."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from vitrail.bind.augmentation import Crop
from vitrail.bind.modalities.image import CLIP_MEAN, CLIP_STD, Image
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError

SHARED = Path(__file__).parents[3].parent / "shared"
PLAIN = Image(width=8, depth=1, heads=2, patch_size=4, size=32, colour_jitter=0.0, flip=0.0)


@pytest.fixture
def picture(photos):
    return photos / "test" / "banana" / "07.webp"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the real data are not beside the repository")
def test_pictures_are_prepared_as_by_the_official_code():
    parity = SHARED / "parity" / "imagebind"
    names = json.loads((parity / "preprocess_files.json").read_text())["images"]
    expected = np.load(parity / "preprocess_reference.npz")["images"]
    png, jpeg = (Image().read(SHARED / "data" / name) for name in names)
    assert png.shape == (1, 3, 224, 224) and png.dtype == torch.float32
    np.testing.assert_allclose(png[0], expected[0].astype(np.float32), atol=2e-3)  # stored in half precision
    # Only the same crop: the pixels of this file differ from the reference's by what another JPEG of it would.
    assert np.abs(jpeg[0].numpy() - expected[1]).mean() < 0.05


def test_the_central_square(picture):
    made = PLAIN.read(picture)
    with Pillow.open(picture) as image:
        image = image.convert("RGB")
        short = min(image.size)
        image = image.resize(tuple(32 * side // short for side in image.size), Pillow.Resampling.BICUBIC)
        left, top = (round((side - 32) / 2) for side in image.size)
        values = np.asarray(image.crop((left, top, left + 32, top + 32))).astype(np.float64) / 255
    expected = (values - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(made[0].permute(1, 2, 0), expected, atol=1e-6)


def sample(modality, source, seed=0, **options):
    return modality.sample(source, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("changes", [{}, {"colour_jitter": 0.4, "rand_augment": "rand-m9-mstd0.5", "erasing": 1.0}])
def test_what_is_random_follows_the_generator_alone(picture, changes):
    modality = replace(PLAIN, **changes)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    following = (torch.rand(()).item(), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    first = sample(modality, picture)
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == following
    torch.testing.assert_close(first, sample(modality, picture), rtol=0, atol=0)
    assert first.shape == (3, 32, 32) and not torch.equal(first, sample(modality, picture, seed=1))


def test_a_crop_can_be_given(picture):
    crop = Crop(0.25, 0.5, 0.5, 0.25)
    with Pillow.open(picture) as image:
        cropped = crop.apply(image.convert("RGB"), 32, Pillow.Resampling.BICUBIC)
    expected = (np.asarray(cropped).astype(np.float64) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(sample(PLAIN, picture, crop=crop).permute(1, 2, 0), expected, atol=1e-6)


def test_erasing_and_jitter_do_something(picture):
    crop = Crop(0.0, 0.0, 1.0, 1.0)
    plain = sample(PLAIN, picture, crop=crop)
    erased = sample(replace(PLAIN, erasing=1.0), picture, crop=crop)
    gone = erased != plain
    assert 0.02 <= gone.float().mean() <= 0.34 and (erased[gone] == 0).all()
    jittered = sample(replace(PLAIN, colour_jitter=0.4), picture, crop=crop)
    assert (jittered != plain).float().mean() > 0.5


def test_a_picture_is_both_of_two_frames(picture):
    torch.manual_seed(0)
    encoder = PLAIN.build(6).eval()
    inputs = PLAIN.read(picture)
    clip = inputs[:, :, None].expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(encoder(inputs), encoder(clip), rtol=1e-4, atol=1e-5)


def test_mistakes(tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    for name in ("no.png", "nowhere.png"):
        with pytest.raises(CorruptSample):
            PLAIN.read(tmp_path / name)
    with pytest.raises(VitrailError, match=r"Image\.scale is 0\.9 to 0\.2"):
        replace(PLAIN, scale=(0.9, 0.2))
    with pytest.raises(VitrailError, match=r"Image\.size is 3"):
        replace(PLAIN, size=3)
