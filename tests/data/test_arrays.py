import numpy as np
import pytest

from vitrail.data.arrays import read_arrays
from vitrail.data.corrupt import CorruptSample


def test_arrays_by_name(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez_compressed(tmp_path / "b.npz", x=np.ones(2), y=np.zeros(1))
    assert {name: array.tolist() for name, array in read_arrays(tmp_path / "a.npy").items()} == {"": [0, 1, 2]}
    assert {name: array.tolist() for name, array in read_arrays(tmp_path / "b.npz").items()} == {"x": [1, 1], "y": [0]}


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("sprung",))

    np.save(tmp_path / "a.npy", np.array([Trap()]), allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=np.array([Trap()]))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(CorruptSample, match="holds no plain array"):
            read_arrays(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no array at all", b"PK\x03\x04 no archive"])
def test_damaged(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(CorruptSample, match=r"a.npz: it is no NumPy file"):
        read_arrays(path)


@pytest.mark.parametrize("name", ["a.npy", "a.NPY"])
def test_an_archive_that_is_called_otherwise(tmp_path, name):
    np.savez(tmp_path / "b.npz", x=np.ones(2))
    (tmp_path / "b.npz").rename(tmp_path / name)
    with pytest.raises(CorruptSample, match=rf"{name}: it is an NPZ file, which must be called \.npz;"):
        read_arrays(tmp_path / name)
