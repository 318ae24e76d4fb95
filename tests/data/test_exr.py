"""Depth in OpenEXR files."""

import numpy as np
import pytest

from vitrail.data.corrupt import CorruptSample
from vitrail.data.exr import read_exr

open_exr = pytest.importorskip("OpenEXR")

PLANE = np.linspace(0.25, 6, 12, dtype=np.float32).reshape(3, 4)


def write(path, **channels):
    header = {"compression": open_exr.ZIP_COMPRESSION, "type": open_exr.scanlineimage}
    open_exr.File(header, channels).write(str(path))
    return path


@pytest.mark.parametrize(
    "channels",
    [
        {"Z": PLANE},
        {"anything": PLANE},
        {"View Layer.Depth.Z": PLANE, "R": PLANE + 1},
        {"R": PLANE, "G": PLANE.copy(), "B": PLANE.copy()},
        {"Y": PLANE, "RY": PLANE + 1},
    ],
)
def test_the_channel_of_depth(channels, tmp_path):
    found = read_exr(write(tmp_path / "a.exr", **channels))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, PLANE)


def test_halves_and_what_is_not_finite(tmp_path):
    values = PLANE.astype(np.float16)
    values[0, 0] = np.inf
    np.testing.assert_array_equal(read_exr(write(tmp_path / "a.exr", Z=values)), values.astype(np.float32))


def test_files_that_are_wrong(tmp_path):
    path = write(tmp_path / "a.exr", R=PLANE, G=PLANE + 1, B=PLANE)
    with pytest.raises(CorruptSample, match="it has the channels B, G, R, of which none is called Z"):
        read_exr(path)
    content = path.read_bytes()
    for wrong, reason in ((b"", "it is empty"), (b"hello" * 40, "damaged"), (content[:200], "damaged")):
        path.write_bytes(wrong)
        with pytest.raises(CorruptSample, match=reason):
            read_exr(path)
    with pytest.raises(CorruptSample, match="no such file"):
        read_exr(tmp_path / "none.exr")
