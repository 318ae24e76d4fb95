from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.bind.modalities.thermal import Thermal
from vitrail.data.corrupt import CorruptSample

ROADS = Path(__file__).parents[3].parent / "shared" / "data" / "roadscene" / "thermal"
SMALL = {"width": 8, "depth": 1, "heads": 2, "size": 32}


def test_8_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values[..., None].repeat(3, axis=2)).save(tmp_path / "colour.png")
    expected = torch.from_numpy(values[:, 4:36] / np.float32(255))[None, None]
    for name in ("grey.png", "colour.png"):
        torch.testing.assert_close(Thermal(**SMALL).read(tmp_path / name), expected, atol=1e-6, rtol=0)
    found = Thermal(**SMALL, mean=0.5, std=0.25).read(tmp_path / "grey.png")
    torch.testing.assert_close(found, (expected - 0.5) / 0.25, atol=1e-5, rtol=0)


def test_16_bits_and_floats(tmp_path):
    kelvin = 29000 + np.arange(32 * 32).reshape(32, 32)  # hundredths
    Image.fromarray(kelvin.astype(np.uint16)).save(tmp_path / "a.tiff")
    Image.fromarray(kelvin.astype(np.float32) / 100 - 273.15).save(tmp_path / "b.tiff")
    np.save(tmp_path / "c.npy", kelvin)
    full = Thermal(**SMALL, deep="full").read(tmp_path / "a.tiff")
    torch.testing.assert_close(full[0, 0], torch.from_numpy(kelvin / 65535).float(), atol=1e-6, rtol=0)
    least, greatest = np.percentile(kelvin, (1, 99))
    expected = torch.from_numpy(((kelvin - least) / (greatest - least)).clip(0, 1)).float()
    for name, deep in (("a.tiff", "percentiles"), ("b.tiff", "full"), ("c.npy", "full")):
        found = Thermal(**SMALL, deep=deep).read(tmp_path / name)
        torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=0)
    assert (Thermal(**SMALL).read(np.full((32, 32), 30000, np.uint16)) == 0).all()


def test_upright(tmp_path):
    values = np.zeros((32, 32), np.uint8)
    values[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert Thermal(**SMALL).read(tmp_path / "a.png")[0, 0, -1].tolist() == [1] * 32


def test_not_finite(tmp_path):
    np.save(tmp_path / "a.npy", np.full((32, 32), np.nan))
    with pytest.raises(CorruptSample, match=r"a.npy: it has values that are not finite"):
        Thermal().read(tmp_path / "a.npy")


def test_sample_and_encoder():
    thermal = Thermal(**SMALL)
    values = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
    sample = thermal.sample(values, torch.Generator().manual_seed(0))
    assert sample.shape == (1, 32, 32)
    assert thermal.build(5)(sample[None]).shape == (1, 5)
    assert sum(parameter.numel() for parameter in Thermal().build(1024).parameters()) == 86_211_072


@pytest.mark.shared
@pytest.mark.skipif(not ROADS.exists(), reason="the real data are not beside the repository")
def test_real_pictures():
    for path in sorted(ROADS.glob("*.jpg"))[::60]:
        found = Thermal().read(path)
        assert found.shape == (1, 1, 224, 224)
        assert 0 <= found.min() < found.max() <= 1
        assert found.std() > 0.05
