"""OpenEXR files of one channel, as renderers and scanners write depth."""

from pathlib import Path

import numpy as np

from vitrail.data.corrupt import CorruptSample, check_holds_data
from vitrail.errors import VitrailError

_NAMES = ("z", "depth", "y", "v")
"""What a channel of depth or of grey is called, without its layer."""


def read_exr(path: str | Path) -> np.ndarray:
    """The numbers of a file's one channel, of the one called Z (or depth, Y, V), or of three that are all the same.

    Returns:
        [H, W] float32, as they are.

    Raises:
        CorruptSample: there is no such file, it is damaged, or has several channels.
        VitrailError: the package of the extra is missing.
    """
    try:
        import OpenEXR
    except ImportError:
        raise VitrailError("EXR is read with OpenEXR, which is missing; pip install 'vitrail[bind]'.") from None
    check_holds_data(Path(path))
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for part in file.parts for name, channel in part.channels.items()}
    except Exception:  # the library's errors are of many types
        raise CorruptSample(path, "it is no OpenEXR file, or is damaged") from None
    wanted = [name for known in _NAMES for name in channels if name.rpartition(".")[2].lower() == known]
    planes = list(channels.values())
    if not wanted and planes and all(np.array_equal(planes[0], plane, equal_nan=True) for plane in planes[1:]):
        wanted = list(channels)
    if not wanted:
        raise CorruptSample(path, f"it has the channels {', '.join(channels)}, of which none is called Z")
    return np.asarray(channels[wanted[0]], dtype=np.float32)
