"""NumPy files, read without trust."""

from pathlib import Path

import numpy as np

from vitrail.data.corrupt import CorruptSample


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file by name, or the one of an NPY file under the name "".

    Raises:
        CorruptSample: there is no such file, or it is none of NumPy's, damaged, called .npy though it is an NPZ, or
            holds objects rather than numbers.
    """
    try:
        with Path(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise CorruptSample(path, "there is no such file") from None
    except Exception:  # damaged files fail in NumPy, zipfile or zlib, by errors of many types
        raise CorruptSample(path, "it is no NumPy file, is damaged, or holds no plain array") from None
    if "" not in arrays and Path(path).suffix.lower() == ".npy":
        raise CorruptSample(path, "it is an NPZ file, which must be called .npz")
    for array in arrays.values():
        if array.dtype.kind not in "biuf":
            raise CorruptSample(path, f"it holds {array.dtype} rather than numbers")
    return arrays
