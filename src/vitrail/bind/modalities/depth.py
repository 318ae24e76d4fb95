"""Depth: maps of metres, as disparity (Section 6.3.3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vitrail.bind.grey import GreyPicture, Source, grey_values
from vitrail.config import check_range
from vitrail.data.corrupt import CorruptSample


class Sensor(NamedTuple):
    """What turns metres into disparity."""

    baseline: float
    """Metres between its two eyes."""
    focal_length: float
    """Pixels, at its own resolution."""


SENSORS = {
    "kv1": Sensor(0.075, 518.86),
    "kv2": Sensor(0.075, 529.5),
    "realsense": Sensor(0.095, 691.58),
    "xtion": Sensor(0.095, 570.34),
}
"""Kinect v1 and v2, RealSense, Xtion, by their names in SUN RGB-D and with the focal lengths usual there."""

_NEAREST, _FARTHEST = 0.01, 50.0  # metres
_LARGEST = 600.0  # disparity
_SUN_FARTHEST = 8.0  # metres
_IMPLAUSIBLE = 200.0  # metres: half of a map lies beyond only if it is not in metres


@dataclass(frozen=True, kw_only=True)
class Depth(GreyPicture):
    """Maps of 16-bit millimetres or of floats in metres: PNG, TIFF, NPY, EXR; defaults as in the published model.

    Where depth is unknown (0, 65535, negative, not finite) it is filled in from around. Then it is clipped to 0.01 to
    50 m and becomes disparity, baseline x focal length / metres.

    The published code does not contain the normalization. Those who use its weights follow Omnivore's: disparity over
    75, at most 1, less 0.0418, over 0.0295. These figures fit disparities from SUN RGB-D's PNGs taken as they are,
    where depth is eight times too great; the defaults of `mean` and `std` are the same figures for true metres, which
    give such pictures the same values. That is our inference.
    """

    name: ClassVar[str] = "depth"

    width: int = 384
    heads: int = 8
    temperature: float | None = 0.2
    mean: float = 8 * 75 * 0.0418
    std: float = 8 * 75 * 0.0295
    encoding: Literal["plain", "sunrgbd"] = "plain"
    """Of integers: plain millimetres, or millimetres rotated by three bits as in SUN RGB-D, up to 8 m."""
    sensor: Literal["kv1", "kv2", "realsense", "xtion"] = "kv1"
    """That the maps come from: Kinect v1 or v2, RealSense, Xtion."""
    baseline: float | None = None
    """Metres between the eyes of another sensor; None: the named one's (0.075, or 0.095 of realsense and xtion)."""
    focal_length: float | None = None
    """Pixels, at the sensor's own resolution even if files are scaled; None: the usual one of the named sensor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "baseline", "focal_length", above=0)

    def plane(self, source: Source) -> np.ndarray:
        """Disparity [H, W], in pixels at the sensor's resolution, above 0."""
        metres = torch.from_numpy(fill(self.metres(source)))
        baseline, focal_length = SENSORS[self.sensor]
        scale = (self.baseline or baseline) * (self.focal_length or focal_length)
        disparity: np.ndarray = (scale / metres.clip(_NEAREST, _FARTHEST)).clip(max=_LARGEST).numpy()
        return disparity

    def metres(self, source: Source) -> np.ndarray:
        """The map [H, W] in metres, float32, NaN where depth is unknown.

        Raises:
            CorruptSample: there is no such file, it is damaged, or it holds no depth.
        """
        values, name = grey_values(source)
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):  # beyond float32 is infinite, as sensors say that they saw nothing
                metres: np.ndarray = values.astype(np.float32)
            unknown = ~(np.isfinite(metres) & (metres > 0))
            if not unknown.all() and np.median(metres[~unknown]) > _IMPLAUSIBLE:
                raise CorruptSample(
                    name, "its floats must be metres, but more than half of them are above 200; divide them first"
                )
        elif values.dtype.itemsize == 1:
            raise CorruptSample(name, "it has 8 bits a pixel, and depth needs 16 (millimetres) or floats (metres)")
        elif self.encoding == "sunrgbd":
            if values.min() < 0 or values.max() > 65535:
                raise CorruptSample(name, "it has more than the 16 bits of SUN RGB-D's encoding")
            rotated = values.astype(np.uint16)
            millimetres = (rotated >> 3) | (rotated << 13)
            unknown = millimetres == 0
            metres = np.minimum(millimetres.astype(np.float32) / 1000, _SUN_FARTHEST)
        else:
            unknown = (values <= 0) | (values >= 65535)
            metres = values.astype(np.float32) / 1000
        if unknown.all():
            raise CorruptSample(name, "none of its pixels has a depth")
        return np.where(unknown, np.float32(np.nan), metres)


def fill(values: np.ndarray) -> np.ndarray:
    """[H, W] with NaN in places -> the same without, smooth where they were: a pyramid of averages of what is known.

    A hole takes the bilinear interpolation of the averages over 2 x 2 pixels, of which those without any known pixel
    are filled in the same way from 4 x 4, and so on. At least one value must be known.
    """
    return _fill(values, ~np.isnan(values))


def _fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    if known.all():
        return values
    sums, counts = _sums(np.where(known, values, np.float32(0))), _sums(known.astype(np.float32))
    coarse = _fill(sums / np.maximum(counts, 1), counts > 0)
    around = F.interpolate(torch.from_numpy(coarse)[None, None], values.shape, mode="bilinear", align_corners=False)
    return np.where(known, values, around[0, 0].numpy())


def _sums(values: np.ndarray) -> np.ndarray:
    """[H, W] -> [ceil(H / 2), ceil(W / 2)], sums over 2 x 2 pixels, at odd ends over fewer."""
    for axis in (0, 1):
        values = np.moveaxis(values, axis, 0)
        pairs = values[::2].copy()
        pairs[: len(values) // 2] += values[1::2]
        values = np.moveaxis(pairs, 0, axis)
    return values
