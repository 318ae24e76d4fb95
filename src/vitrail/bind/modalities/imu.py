"""Motion: accelerometer and gyroscope (Section 6.3.3)."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.bind.encoder import Encoder, signal_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.prompts import IMAGENET_TEMPLATES
from vitrail.bind.signals import Recording, read_recording, resample
from vitrail.bind.spans import Span
from vitrail.config import check_range
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError

RATE = 400
"""Samples a second that the encoder takes."""
LENGTH = 2000
"""Samples of a window: 5 s."""

GRAVITY = 9.80665
"""m/s^2."""
_FASTEST_TURN = math.radians(2000)  # a second; more than most gyroscopes can measure


class UnitWarning(UserWarning):
    """Numbers that are hardly what they are said to be."""


@dataclass(frozen=True, kw_only=True)
class Inertial(Modality):
    """Windows of 5 s of three axes of acceleration in m/s^2, then three of rotation in rad/s, at 400 Hz: [6, 2000].

    The published code contains no preprocessing; units, and the order, are our choice. Files are tables of text (CSV),
    NPY and NPZ: see `vitrail.bind.signals`.
    """

    name: ClassVar[str] = "imu"
    window: ClassVar[float] = LENGTH / RATE
    """Seconds that the encoder takes."""
    templates: ClassVar[tuple[str, ...]] = IMAGENET_TEMPLATES

    width: int = 512
    depth: int = 6
    heads: int = 8
    drop_path: float = 0.7
    dropout: float = 0.5
    temperature: float | None = 0.2
    rate: float | None = None
    """Samples a second in the files; None: they tell, by a column of times or `rate` in NPZ."""
    columns: tuple[str, ...] = ()
    """Of tables: accelerometer x, y, z and gyroscope x, y, z by name or number from 0; empty: known names."""
    time_column: str | None = None
    """Of tables: the column of times, in the s, ms, us or ns that its name ends in, or whichever is plausible; None: by
    known names."""
    acceleration: Literal["m/s^2", "g"] = "m/s^2"
    """Unit in the files, gravity being part of it."""
    rotation: Literal["rad/s", "deg/s"] = "rad/s"
    """Unit in the files."""
    windows: Literal["all", "centre"] = "all"
    """Of recordings longer than 5 s: as many windows as cover it, evenly spaced, or the middle one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "rate", above=0)
        if len(self.columns) not in (0, 6):
            raise VitrailError(
                f"Inertial.columns are {len(self.columns)}; give six: accelerometer x, y, z and gyroscope x, y, z."
            )

    def build(self, dimension: int) -> Encoder:
        """[B, 6, 2000] -> [B, dimension]."""
        return signal_encoder(self, dimension, channels=6, kernel_size=8, length=LENGTH)

    def read(self, source: str | Path | np.ndarray) -> Tensor:
        """Windows of a file, or of an array [T, 6] or [6, T].

        Args:
            source: the file; what is shorter than a window goes on with its last values.

        Returns:
            [S, 6, 2000] float32.

        Raises:
            CorruptSample: there is no such file, or it is damaged or unclear.
        """
        return torch.cat([window for _, window in self.parts(source)])

    def read_part(self, source: str | Path | np.ndarray, part: Span) -> Tensor:
        """Windows of a part of a file: see `Modality.read_part`."""
        signal, name = self.signal(source)
        begin = _begin(part[0], signal, name)
        end = min(begin + round(min(part[1] * RATE, signal.shape[1])), signal.shape[1])
        return torch.cat([_window(signal, start)[None] for start in self._starts(begin, end)])

    def parts(self, source: str | Path | np.ndarray) -> Iterator[tuple[Span, Tensor]]:
        """The windows one by one: see `Modality.parts`."""
        signal, _ = self.signal(source)
        for begin in self._starts(0, signal.shape[1]):
            seconds = min(LENGTH, signal.shape[1] - begin) / RATE
            yield (begin / RATE, seconds), _window(signal, begin)[None]

    def _starts(self, begin: int, end: int) -> list[int]:
        """The samples where windows of a part begin."""
        free = max(0, end - begin - LENGTH)
        if self.windows == "centre":
            return [begin + free // 2]
        count = max(1, math.ceil((end - begin) / LENGTH))
        return [begin + round(place) for place in np.linspace(0, free, count)]

    def sample(self, source: str | Path | np.ndarray, generator: torch.Generator, start: float | None = None) -> Tensor:
        """A window of a file or array.

        Args:
            source: the file; what is shorter than a window goes on with its last values.
            generator: of what is random.
            start: seconds where the window begins, that of the video (aligned, Table 6.6h); None: anywhere.

        Returns:
            [6, 2000] float32.

        Raises:
            CorruptSample: as `read`.
        """
        signal, name = self.signal(source)
        free = max(0, signal.shape[1] - LENGTH)
        if start is None:
            return _window(signal, int(torch.randint(free + 1, (), generator=generator)))
        return _window(signal, _begin(start, signal, name))

    def duration(self, source: str | Path | np.ndarray) -> float:
        """Seconds that a recording lasts.

        Raises:
            CorruptSample: as `read`.
        """
        return self.signal(source)[0].shape[1] / RATE

    def signal(self, source: str | Path | np.ndarray) -> tuple[Tensor, str]:
        """The whole recording, [6, T] float32 at 400 Hz in m/s^2 and rad/s, and what errors call it.

        Units that are hardly true give a `UnitWarning`.

        Raises:
            CorruptSample: there is no such file, or it is damaged or unclear.
        """
        recording = read_recording(source, self.columns, self.time_column)
        values = resample(recording, self.rate, RATE)
        values[:, :3] *= GRAVITY if self.acceleration == "g" else 1
        values[:, 3:] *= math.radians(1) if self.rotation == "deg/s" else 1
        self._check_units(values, recording)
        return torch.from_numpy(np.ascontiguousarray(values.T, dtype=np.float32)), recording.name

    def _check_units(self, values: np.ndarray, recording: Recording) -> None:
        strength = float(np.median(np.linalg.norm(values[:, :3], axis=1))) / GRAVITY
        given = strength if self.acceleration == "g" else strength * GRAVITY
        complaint = None
        if not 0.5 < strength < 2:
            if 0.5 < given < 2:
                advice = "set acceleration to g"
            elif 0.5 < given / GRAVITY < 2:
                advice = "set acceleration to m/s^2"
            else:
                advice = "gravity seems to be left out, or the columns are others"
            complaint = f"its acceleration is mostly {given:.3g} {self.acceleration}, and rest would be 1 g: {advice}"
        elif float(np.abs(values[:, 3:]).max()) > _FASTEST_TURN:
            advice = "set rotation to deg/s" if self.rotation == "rad/s" else "check the columns"
            complaint = f"its rotation comes to over 2000 degrees a second: {advice}"
        if complaint:
            warnings.warn(f"{recording.name} is hardly in the units said: {complaint}.", UnitWarning, stacklevel=3)


def _begin(start: float, signal: Tensor, name: str) -> int:
    """The sample at `start` seconds."""
    seconds = signal.shape[1] / RATE
    if not 0 <= start < seconds:
        raise CorruptSample(name, f"it lasts {seconds:g} s, and a window is to begin at {start:g} s")
    return min(round(start * RATE), signal.shape[1] - 1)


def _window(signal: Tensor, begin: int) -> Tensor:
    """[6, T] -> [6, 2000] from `begin` on; after the end, the last values."""
    window = signal[:, begin : begin + LENGTH]
    missing = LENGTH - window.shape[1]
    return torch.cat([window, window[:, -1:].expand(-1, missing)], dim=1) if missing else window.contiguous()
