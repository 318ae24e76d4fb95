"""Heat: pictures of infrared cameras, of one channel (Section 6.3.3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vitrail.bind.grey import GreyPicture, Source, grey_values
from vitrail.data.corrupt import CorruptSample


@dataclass(frozen=True, kw_only=True)
class Thermal(GreyPicture):
    """Pictures of 8 or 16 bits, colour taken as grey, and of floats: image files, NPY and EXR; 0 to 1 for the encoder.

    The published code does not contain the normalization; with its weights, none (`mean` 0, `std` 1) comes closer to
    the published score on LLVIP than CLIP's.
    """

    name: ClassVar[str] = "thermal"

    temperature: float | None = 0.1
    deep: Literal["percentiles", "full"] = "percentiles"
    """Which 16-bit values are 0 and 1: the picture's own 1st and 99th percentile, as its few degrees are a small part
    of the range of the sensor, or 0 and 65535. Wider integers and floats, of no agreed range, always take percentiles.
    """

    def plane(self, source: Source) -> np.ndarray:
        """Heat [H, W], 0 to 1."""
        values, name = grey_values(source)
        if values.dtype == np.uint8:
            return values.astype(np.float32) / 255
        if values.dtype == np.uint16 and self.deep == "full":
            return values.astype(np.float32) / 65535
        if not np.isfinite(values).all():
            raise CorruptSample(name, "it has values that are not finite")
        least, greatest = np.percentile(values.astype(np.float64), (1, 99))
        spread = max(float(greatest - least), float(np.finfo(np.float32).tiny))
        return ((values - least) / spread).clip(0, 1).astype(np.float32)
