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
from vitrail.data.images import SUFFIXES
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


def test_every_kind_of_picture_is_known():
    assert {f".{kind}" for kind in SUFFIXES} < Image.suffixes


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


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_can_be_given(picture, interpolation):
    crop = Crop(0.25, 0.5, 0.5, 0.25)
    with Pillow.open(picture) as image:
        cropped = crop.apply(image.convert("RGB"), 32, Pillow.Resampling[interpolation.upper()])
    expected = (np.asarray(cropped).astype(np.float64) / 255 - CLIP_MEAN) / CLIP_STD
    made = sample(replace(PLAIN, interpolation=interpolation), picture, crop=crop)
    np.testing.assert_allclose(made.permute(1, 2, 0), expected, atol=1e-6)


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


@pytest.fixture
def video(tmp_path):
    """Three seconds of a wide picture that turns from red to blue, 25 frames a second."""
    av = pytest.importorskip("av")
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 36, 72, "bgr0"
        for number in range(75):
            values = np.zeros((36, 72, 3), np.uint8)
            values[..., 0], values[:, 36:, 1], values[..., 2] = 240 - 3 * number, 255, 3 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def colours(views):
    """[V, 3, 2, size, size] -> [V, 2, 3] in 0..255, of the pixels on the left."""
    return (views[..., 0].mean(dim=-1).mT * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)) * 255


def test_the_views_of_a_video(video):
    views = PLAIN.read(video)
    assert views.shape == (15, 3, 2, 32, 32) and views.dtype == torch.float32
    assert PLAIN.duration(video) == pytest.approx(3)
    starts = [0.0, 0.25, 0.5, 0.75, 1.0]
    first = [int(np.ceil(25 * start)) for start in starts]
    last = [int(np.ceil(25 * (start + 2))) - 1 for start in starts]
    for clip in range(5):
        for crop, green in enumerate((0, 0, 255)):  # along the longer side, of which the right half is green
            (made,) = colours(views[3 * clip + crop][None])
            expected = [[240 - 3 * frame, green, 3 * frame] for frame in (first[clip], last[clip])]
            torch.testing.assert_close(made, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1)
    torch.testing.assert_close(replace(PLAIN, clips=1, crops=1).read(video), views[1:2])
    spans = [span for span, _ in replace(PLAIN, clips="cover").parts(video)]
    assert spans == [(0.0, 2.0), (pytest.approx(1), pytest.approx(2))]


def test_a_part_of_a_video(video, picture):
    one = replace(PLAIN, clips=1, crops=1)
    (span,) = [span for span, _ in one.parts(video)]
    assert span == (0, 2)
    torch.testing.assert_close(one.read_part(video, (0.5, 2.0)), replace(one, clips=3).read(video)[1:2])
    torch.testing.assert_close(one.read_part(video, (2.9, 2.0)), replace(one, clips=2).read(video)[1:])
    assert torch.equal(PLAIN.read_part(picture, (100.0, 2.0)), PLAIN.read(picture))
    with pytest.raises(CorruptSample, match="it lasts 3 s, and a part is to begin at 3 s"):
        PLAIN.read_part(video, (3.0, 1.0))


def test_a_clip_at_random(video):
    modality = replace(PLAIN, scale=(1.0, 1.0), colour_jitter=0.4, erasing=1.0)
    one, other = (sample(modality, video, seed) for seed in (0, 1))
    assert one.shape == (3, 2, 32, 32) and not torch.equal(one, other)
    assert torch.equal(one, sample(modality, video))
    assert torch.equal(one[:, 0] == 0, one[:, 1] == 0) and (one == 0).all(dim=0).any()  # erased alike
    ends = colours(sample(PLAIN, video, start=0.5)[None])[0]
    torch.testing.assert_close(ends[:, 2], torch.tensor([39.0, 3 * 62]), rtol=0, atol=1)
    late = colours(sample(PLAIN, video, start=9.0)[None])[0]
    torch.testing.assert_close(late[:, 2], torch.tensor([75.0, 3 * 74]), rtol=0, atol=1)


def test_a_picture_lasts_for_ever(picture):
    assert PLAIN.duration(picture) == float("inf")
    assert [span for span, _ in PLAIN.parts(picture)] == [None]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the real data are not beside the repository")
def test_videos_are_prepared_as_by_the_official_code():
    pytest.importorskip("av")
    parity = SHARED / "parity" / "imagebind"
    expected = np.load(parity / "preprocess_reference.npz")["video_views_0_1_2_and_14"][0].astype(np.float32)
    views = Image().read(parity / "clip.mkv")
    assert views.shape == (15, 3, 2, 224, 224)
    np.testing.assert_allclose(views[[0, 1, 2, 14]], expected, atol=1e-3)  # stored in half precision
