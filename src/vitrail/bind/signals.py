"""Recordings of accelerometers and gyroscopes: tables and arrays, resampled."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrail.data.arrays import read_arrays
from vitrail.data.corrupt import TOO_LARGE, CorruptSample
from vitrail.tables import is_whole

_ACCELEROMETER = r"(?:imu)?(?:linear)?(?:a|acc|accl|accel|acceleration|accelerometer)"
_GYROSCOPE = r"(?:imu)?(?:g|w|gyr|gyro|gyroscope|angularvelocity|angularrate|rot|rotation|rotationrate)"
_UNIT = r"(?:g|ms|mss|mps|rads|radps|degs|dps)?"
_TIME = r"(?:t|time|times|timestamp|seconds)(?:s|sec|(?:milli|micro|nano)?seconds|ms|us|ns)?"
_AXES = tuple((kind, axis) for kind in (_ACCELEROMETER, _GYROSCOPE) for axis in "xyz")
_NAMES = tuple(f"{kind} {axis}" for kind in ("accelerometer", "gyroscope") for axis in "xyz")
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # of time, in a second
_SPELLED = {
    **{unit: unit for unit in _UNITS},
    **{"sec": "s", "second": "s", "seconds": "s", "\u00b5s": "us", "\u03bcs": "us"},
    **{"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"},
}
_LARGEST = 1e36  # in whatever unit, it fits into float32
_SLOWEST, _FASTEST = 5.0, 5000.0  # samples a second


@dataclass(frozen=True)
class Recording:
    """What a file holds."""

    name: str
    """What errors call it."""
    values: np.ndarray
    """[T, 6] float64, accelerometer x, y, z, then gyroscope; NaN where something is missing."""
    times: np.ndarray | None = None
    """[T] float64; None: the file does not tell."""
    unit: str | None = None
    """Of the times: s, ms, us or ns; None: the file does not tell."""
    rate: float | None = None
    """Samples a second; None: the file does not tell."""


def read_recording(source: str | Path | np.ndarray, columns: Sequence[str], time_column: str | None) -> Recording:
    """A CSV (or other table of text), NPY or NPZ file, or an array [T, 6] or [6, T].

    A table is separated by commas, semicolons, tabs or spaces. Names in its first line are compared without regard to
    case, punctuation and units: accelerometer, accel, accl, acc or a, and gyroscope, gyro, gyr, g or w, each with x, y
    and z. The name of the times may end in their unit, as `time_ms` and `time (s)` do. An NPZ file holds one such
    array, and may hold `rate`.

    Args:
        source: the file.
        columns: of a table: the six columns by name or number from 0; empty: known names, or the only six.
        time_column: by name or number; None: a column of a known name, if any.

    Raises:
        CorruptSample: there is no such file, it is damaged, or it is not clear which columns are which.
    """
    if isinstance(source, np.ndarray):
        return Recording("the array", _upright(source, "the array"))
    name = str(source)
    if name.lower().endswith(".npy"):
        return Recording(name, _upright(read_arrays(source)[""], name))
    if name.lower().endswith(".npz"):
        arrays = read_arrays(source)
        rate = arrays.pop("rate", None)
        if len(arrays) != 1 or (rate is not None and rate.size != 1):
            raise CorruptSample(
                name, f"it holds {', '.join(arrays) or 'nothing'} rather than one array [T, 6] and perhaps one `rate`"
            )
        (values,) = arrays.values()
        return Recording(name, _upright(values, name), rate=None if rate is None else float(rate.item()))
    return _read_table(Path(source), columns, time_column)


def resample(recording: Recording, own_rate: float | None, rate: int) -> np.ndarray:
    """The recording at `rate` samples a second: [T', 6] float64.

    Values between samples are interpolated linearly. Of a faster recording, each value is the average over its own
    1 / rate seconds, so that what is too fast for the new rate does not come out as something slow. What is missing is
    interpolated too. T samples last T times the mean step.

    Args:
        recording: what was read.
        own_rate: of the recording; None: as the file says, in times or as a rate.
        rate: that is wanted.

    Raises:
        CorruptSample: the recording's rate is unknown or implausible, its times do not rise, a column is empty, or
            numbers are too large.
    """
    name, values = recording.name, recording.values
    if len(values) < 2:
        raise CorruptSample(name, "it has fewer than two samples")
    own_rate = own_rate or recording.rate
    if own_rate is not None:
        if not _SLOWEST < own_rate <= _FASTEST:
            raise CorruptSample(
                name, f"a rate of {own_rate:g} samples a second is not plausible; set it, as in --set imu.rate=100"
            )
        times = np.arange(len(values)) / own_rate
    elif recording.times is not None:
        times = _seconds(recording.times, recording.unit, name)
    else:
        raise CorruptSample(
            name,
            "it does not say how many samples a second it has; set its rate, as in --set imu.rate=100",
        )
    known = np.isfinite(values)
    if (np.abs(values[known]) > _LARGEST).any():
        raise CorruptSample(name, TOO_LARGE)
    if (known.sum(axis=0) < 2).any():
        raise CorruptSample(name, f"its column of {_NAMES[int(known.sum(axis=0).argmin())]} is empty")
    step = (times[-1] - times[0]) / (len(times) - 1)
    grid = times[0] + np.arange(max(1, round((times[-1] - times[0] + step) * rate))) / rate
    faster = step < 0.999 / rate
    convert = _averaged if faster else np.interp
    return np.stack(
        [convert(grid, times[there], column[there]) for column, there in zip(values.T, known.T, strict=True)], axis=1
    )


def _averaged(grid: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The means of `values` within half a step of `grid` to both sides, from the integral up to each time."""
    half = (grid[1] - grid[0]) / 2 if len(grid) > 1 else 0.0
    begin, end = (np.clip(grid + side, times[0], times[-1]) for side in (-half, half))
    integral = np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * np.diff(times))])
    area = np.interp(end, times, integral) - np.interp(begin, times, integral)
    inside = end > begin
    means: np.ndarray = np.where(inside, area / np.where(inside, end - begin, 1), np.interp(grid, times, values))
    return means


def _seconds(times: np.ndarray, unit: str | None, name: str) -> np.ndarray:
    """Times in seconds from times in a unit; None: in the one that makes 5 to 5000 samples a second."""
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise CorruptSample(name, "its times do not rise from line to line")
    step = (times[-1] - times[0]) / (len(times) - 1)  # single ones may be rounded to whole milliseconds
    for each in _UNITS if unit is None else (unit,):
        if _SLOWEST < _UNITS[each] / step <= _FASTEST:
            seconds: np.ndarray = (times - times[0]) / _UNITS[each]
            return seconds
    apart = f"{step:g} {unit}" if unit else f"{step:g}"
    raise CorruptSample(
        name, f"its times are {apart} apart, which is no plausible rate; set its rate, as in --set imu.rate=100"
    )


def _upright(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 2 or 6 not in values.shape:
        raise CorruptSample(name, f"its shape is {list(values.shape)} rather than [T, 6] or [6, T]")
    return np.asarray(values if values.shape[1] == 6 else values.T, dtype=np.float64)


def _read_table(path: Path, columns: Sequence[str], time_column: str | None) -> Recording:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise CorruptSample(path, "there is no such file") from None
    except (OSError, UnicodeDecodeError):
        raise CorruptSample(path, "it is no table of text") from None
    if not lines:
        raise CorruptSample(path, "it is empty")
    delimiter = next((mark for mark in ",;\t" if mark in lines[0]), " ")
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise CorruptSample(path, f"it is no table: {error}") from None
    header = None if all(_is_number(cell) for cell in rows[0]) else [cell.strip() for cell in rows.pop(0)]
    six, time = _choose(path, header, len(header or rows[0]), columns, time_column)
    wanted = six if time is None else [*six, time]
    table = np.full((len(rows), len(wanted)), np.nan)
    for number, row in enumerate(rows):
        try:
            table[number] = [float(row[place]) if row[place].strip() else np.nan for place in wanted]
        except (ValueError, IndexError):
            line = number + (1 if header is None else 2)
            raise CorruptSample(path, f"line {line} does not hold the numbers that the others do") from None
    if time is None:
        return Recording(str(path), table[:, :6])
    return Recording(str(path), table[:, :6], table[:, 6], None if header is None else _unit(header[time]))


def _choose(
    path: Path, header: list[str] | None, count: int, columns: Sequence[str], time_column: str | None
) -> tuple[list[int], int | None]:
    """Places of the six columns and of the times."""
    plain = [_plain(name) for name in header or []]
    if columns:
        six = [_place(path, header, count, name) for name in columns]
    elif header is None:
        if count != 6:
            raise CorruptSample(
                path,
                f"it has {count} columns without names; set six: --set imu.columns=0,1,2,3,4,5",
            )
        six = list(range(6))
    else:
        six = []
        for (kind, axis), name in zip(_AXES, _NAMES, strict=True):
            pattern = re.compile(rf"(?:{kind}{axis}|{axis}{kind}){_UNIT}")
            found = [place for place, one in enumerate(plain) if pattern.fullmatch(one)]
            if len(found) != 1:
                several = "several columns" if found else "no column"
                raise CorruptSample(
                    path,
                    f"it has {several} of {name} among {', '.join(header)}; set six: --set imu.columns=0,1,2,3,4,5",
                )
            six += found
    if time_column is not None:
        return six, _place(path, header, count, time_column)
    times = [place for place, one in enumerate(plain) if re.fullmatch(_TIME, one)]
    if len(times) > 1:
        raise CorruptSample(path, "it has several columns of time; set one, as in --set imu.time_column=NAME")
    return six, times[0] if times else None


def _place(path: Path, header: list[str] | None, count: int, name: str) -> int:
    if header is not None and name in header:
        return header.index(name)
    if is_whole(name) and int(name) < count:
        return int(name)
    raise CorruptSample(path, f"it has no column {name} among {', '.join(header or map(str, range(count)))}")


def _plain(name: str) -> str:
    """Letters alone, in lower case, without what stands in brackets."""
    return re.sub(r"[^a-z]", "", re.sub(r"[(\[].*?[)\]]", "", name).lower())


def _unit(name: str) -> str | None:
    """Of a column of times: what its name ends in, as `time_ms`, `time (ms)` and `timems` do; None: nothing is named.

    `times` are no seconds.
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    last = words[-1] if words else ""
    glued = re.fullmatch(r"(?:t|time|timestamp)(sec|seconds|ms|us|ns)", last)
    return _SPELLED.get(glued[1] if glued else last)


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True
