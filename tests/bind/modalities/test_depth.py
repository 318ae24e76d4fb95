"""Depth maps written as sensors write them, against disparity by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.bind.augmentation import Crop
from vitrail.bind.modalities.depth import Depth, fill
from vitrail.config import from_json, to_json
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError

SCENES = Path(__file__).parents[3].parent / "shared" / "data" / "rgbd-7scenes"
SMALL = {"width": 8, "depth": 1, "heads": 2, "size": 32}


def slope(height=48, width=64):
    """Millimetres, a wall that recedes from 1 m to 4 m."""
    return np.linspace(1000, 4000, width).round().astype(np.uint16)[None].repeat(height, axis=0)


def unnormalized(**fields):
    return Depth(**SMALL, mean=0.0, std=1.0, **fields)


def test_millimetres_become_disparity_of_the_named_sensor(tmp_path):
    path = tmp_path / "flat.png"
    Image.fromarray(np.full((48, 64), 2500, np.uint16)).save(path)
    for sensor, baseline, focal in (
        ("kv1", 0.075, 518.86),
        ("kv2", 0.075, 529.5),
        ("realsense", 0.095, 691.58),
        ("xtion", 0.095, 570.34),
    ):
        found = unnormalized(sensor=sensor).read(path)
        assert found.shape == (1, 1, 32, 32)
        torch.testing.assert_close(found, torch.full((1, 1, 32, 32), baseline * focal / 2.5))
    found = unnormalized(baseline=0.1, focal_length=300.0).read(path)
    torch.testing.assert_close(found, torch.full((1, 1, 32, 32), 12.0))
    normalized = Depth(**SMALL, baseline=0.1, focal_length=300.0).read(path)
    # Omnivore's figures for a depth that is eight times too great
    torch.testing.assert_close(normalized, torch.full((1, 1, 32, 32), (12.0 / 8 / 75 - 0.0418) / 0.0295))


def test_all_formats_give_the_same(tmp_path):
    millimetres = slope(48, 72)
    Image.fromarray(millimetres).save(tmp_path / "a.png")
    Image.fromarray(millimetres).save(tmp_path / "b.tiff")
    Image.fromarray(millimetres.astype(np.int32)).save(tmp_path / "c.tif")
    Image.fromarray((millimetres / 1000).astype(np.float32)).save(tmp_path / "d.tiff")
    np.save(tmp_path / "e.npy", millimetres)
    np.save(tmp_path / "f.npy", millimetres[None] / 1000)
    rotated = (millimetres << 3) | (millimetres >> 13)
    Image.fromarray(rotated).save(tmp_path / "sun.png")
    expected = unnormalized().read(tmp_path / "a.png")
    # the short side resized to 32, then the central square
    disparity = (0.075 * 518.86 / torch.from_numpy(millimetres.astype(np.float32) / 1000))[None, None]
    by_torch = torch.nn.functional.interpolate(disparity, (32, 48), mode="bilinear", antialias=True)[..., 8:40]
    torch.testing.assert_close(expected, by_torch, rtol=1e-5, atol=1e-5)
    for name in ("b.tiff", "c.tif", "d.tiff", "e.npy", "f.npy"):
        torch.testing.assert_close(unnormalized().read(tmp_path / name), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(unnormalized(encoding="sunrgbd").read(tmp_path / "sun.png"), expected)
    assert unnormalized().read(millimetres).equal(expected)


def test_sun_rgbd_is_capped_at_8_m():
    millimetres = np.array([[0, 1234, 7999, 8001, 60000]], np.uint16)
    rotated = (millimetres << 3) | (millimetres >> 13)
    metres = Depth(encoding="sunrgbd").metres(rotated)
    np.testing.assert_array_equal(metres, np.array([[np.nan, 1.234, 7.999, 8, 8]], np.float32))


def test_unknown_depths():
    integers = np.array([[0, 1000, 65535, 65534]], np.uint16)
    np.testing.assert_array_equal(Depth().metres(integers), np.array([[np.nan, 1, np.nan, 65.534]], np.float32))
    floats = np.array([[0.0, 1.5, np.nan, np.inf, -np.inf, -2.0, np.finfo(np.float64).max]])
    expected = np.array([[np.nan, 1.5] + 5 * [np.nan]], np.float32)
    np.testing.assert_array_equal(Depth().metres(floats), expected)
    # and what is known is clipped
    near_and_far = unnormalized().plane(np.array([[0.001, 60.0]]))
    assert near_and_far.tolist() == [[600.0, pytest.approx(0.075 * 518.86 / 50)]]


def test_holes_are_filled_from_around():
    values = np.full((9, 7), 2.0, np.float32)
    values[3:6, 2:5] = np.nan
    np.testing.assert_allclose(fill(values), 2.0)  # and what is constant stays so
    values[0, 0] = 5.0
    known = ~np.isnan(values)
    filled = fill(values)
    assert (filled[known] == values[known]).all()
    one = np.full((5, 6), np.nan, np.float32)
    one[4, 1] = 3.0
    np.testing.assert_allclose(fill(one), 3.0)  # from however far
    ramp = slope(32, 32).astype(np.float32)
    holes = ramp.copy()
    holes[10:16, 12:18] = np.nan
    filled = fill(holes)
    assert np.abs(filled - ramp).max() < 300  # of 3000 across
    assert 2100 < filled[10:16, 12:18].min() < filled[10:16, 12:18].max() < 2800


def test_samples_take_the_crop_of_the_colour_picture():
    crop = Crop(0.25, 0.5, 0.5, 0.25, flipped=True)
    depth = unnormalized(erasing=0.0)
    found = depth.sample(slope(), torch.Generator(), crop)
    assert found.shape == (1, 32, 32)
    whole = Image.fromarray(depth.plane(slope()))
    expected = whole.resize((32, 32), Image.Resampling.BILINEAR, (32, 12, 48, 36)).transpose(0)
    torch.testing.assert_close(found[0], torch.from_numpy(np.array(expected)))


def test_samples_are_random_by_the_generator():
    depth = Depth(**SMALL, erasing=1.0)
    first, again, other = (depth.sample(slope(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert (first == 0).double().mean() > 0.01
    assert (Depth(**SMALL, erasing=0.0).sample(slope(), torch.Generator().manual_seed(1)) != 0).all()


def test_encoder_is_the_published_one():
    encoder = Depth().build(1024)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 21_871_872
    small = Depth(**SMALL).build(5)
    assert small(Depth(**SMALL).read(slope())).shape == (1, 5)
    modality = Depth(**SMALL, encoding="sunrgbd", baseline=0.1)
    assert from_json(to_json(modality)) == modality


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("a.png", np.zeros((8, 8), np.uint8), "it has 8 bits a pixel, and depth needs 16"),
        ("a.png", np.zeros((8, 8), np.uint16), "none of its pixels has a depth"),
        ("a.npy", np.full((8, 8), 2000.0), "more than half of them are above 200"),
        ("a.npy", np.full((8, 8), 1e300), "none of its pixels has a depth"),
        ("a.npy", np.zeros((8, 8, 3)), r"its shape \[8, 8, 3\] is not that of a picture"),
        ("a.npy", np.zeros((0, 8)), r"its shape \[0, 8\]"),
        ("a.npy", np.array([["a"]]), "rather than numbers"),
        ("a.exr", None, "there is no such file"),
        ("none.npy", None, "there is no such file"),
        ("none.png", None, "there is no such file"),
    ],
)
def test_errors(tmp_path, name, values, reason):
    path = tmp_path / name
    if values is not None and name.endswith("png"):
        Image.fromarray(values).save(path)
    elif values is not None:
        np.save(path, values)
    with pytest.raises(CorruptSample, match=f"{name}: .*{reason}"):
        Depth().read(path)


def test_damaged_arrays(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, slope())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptSample, match="it is no NumPy file, is damaged"):
        Depth().read(path)


def test_fields_are_checked():
    for fields, sentence in (
        ({"focal_length": 0.0}, "Depth.focal_length is 0.0"),
        ({"size": 8}, "Depth.size is 8"),
        ({"std": 0.0}, "Depth.std is 0.0"),
        ({"erasing": 1.5}, "Depth.erasing is 1.5"),
        ({"scale": (0.9, 0.1)}, "Depth.scale is 0.9 to 0.1; give the smaller number first"),
    ):
        with pytest.raises(VitrailError, match=sentence):
            Depth(**fields)


@pytest.mark.shared
@pytest.mark.skipif(not SCENES.exists(), reason="the real data are not beside the repository")
def test_real_maps():
    maps = torch.cat([Depth().read(path) for path in sorted(SCENES.glob("*.depth.png"))[::25]])
    assert maps.shape == (5, 1, 224, 224)
    assert maps.isfinite().all()
    assert maps.abs().mean() < 2  # the figures fit an indoor scene
    assert maps.std() > 0.1
