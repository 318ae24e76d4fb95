"""Tables and arrays of motion: which columns, which rate, which units, which windows."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.bind.modalities.imu import GRAVITY, Inertial, UnitWarning
from vitrail.config import from_json, to_json
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError

ACTIONS = Path(__file__).parents[3].parent / "shared" / "data" / "utd-mhad" / "inertial.npz"
SMALL = {"width": 8, "depth": 1, "heads": 2}
PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}


def motion(rate, seconds):
    """[T, 6] in m/s^2 and rad/s: slow waves around rest, of another frequency in every column."""
    times = np.arange(round(rate * seconds)) / rate
    waves = np.stack([np.sin(2 * np.pi * (0.2 + 0.1 * column) * times + column) for column in range(6)], axis=1)
    return waves + np.array([0, 0, GRAVITY, 0, 0, 0])


def expected(seconds):
    return torch.from_numpy(motion(400, seconds).T).float()


def write(path, header, rows, delimiter=","):
    lines = [delimiter.join(header)] if header else []
    lines += [delimiter.join(str(cell) for cell in row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_400_hz_is_taken_as_it_is():
    values = motion(400, 5)
    found = Inertial(rate=400).read(values)
    assert found.shape == (1, 6, 2000)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], expected(5), atol=1e-6, rtol=0)
    assert Inertial(rate=400).read(values.T).equal(found)


@pytest.mark.parametrize("rate", [50, 100, 333, 800, 1000])
def test_other_rates_are_resampled(rate):
    found = Inertial(rate=rate).read(motion(rate, 5))
    assert found.shape == (1, 6, 2000)
    inside = slice(10, -10)
    torch.testing.assert_close(found[0][:, inside], expected(5)[:, inside], atol=4e-3, rtol=0)


def test_linear_between_samples():
    values = np.repeat([[0, 0, GRAVITY, 0, 0, 0]], 3, axis=0)
    values[:, 3] = [0, 1, 0]
    found = Inertial(rate=100).read(values)[0, 3]
    assert found[:13].tolist() == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0]  # and the last goes on


def test_what_is_too_fast_is_averaged_away():
    values = np.repeat([[0, 0, GRAVITY, 0, 0, 0]], 8000, axis=0)
    values[:, 3] = np.sin(2 * np.pi * 400 * np.arange(8000) / 1600)  # every fourth sample alone would stand still
    values[:, 4] = np.cos(2 * np.pi * 400 * np.arange(8000) / 1600)
    found = Inertial(rate=1600).read(values)[0]
    assert found[3:5, 2:-2].abs().max() < 1e-6
    torch.testing.assert_close(found[2], torch.full((2000,), GRAVITY))


HEADERS = [
    ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"],
    ["ax", "ay", "az", "gx", "gy", "gz"],
    [f"{kind} {axis}" for kind in ("Accelerometer (m/s^2)", "Gyroscope [rad/s]") for axis in "XYZ"],
    [f"imu.{kind}.{axis}" for kind in ("linear_acceleration", "angular_velocity") for axis in "xyz"],
    ["x_acc", "y_acc", "z_acc", "x_gyr", "y_gyr", "z_gyr"],
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_known_names_in_any_order(tmp_path, header, delimiter):
    values = motion(50, 5)
    order = [3, 5, 4, 1, 0, 2]
    rows = [[number / 50, *row[order], "idle"] for number, row in enumerate(values)]
    path = write(tmp_path / "a.csv", ["time", *(header[place] for place in order), "label"], rows, delimiter)
    torch.testing.assert_close(Inertial().read(path), Inertial(rate=50).read(values))


def test_tables_without_known_names(tmp_path):
    values = motion(50, 1)
    reference = Inertial(rate=50).read(values)
    path = write(tmp_path / "bare.txt", None, values, " ")
    torch.testing.assert_close(Inertial(rate=50).read(path), reference)
    rows = np.concatenate([np.arange(50)[:, None] * 20, values], axis=1)
    path = write(tmp_path / "seven.csv", None, rows)
    numbers = Inertial(columns=("1", "2", "3", "4", "5", "6"), time_column="0")
    torch.testing.assert_close(numbers.read(path), reference)
    path = write(tmp_path / "named.csv", ["when", *"abcdef"], rows)
    torch.testing.assert_close(Inertial(columns=tuple("abcdef"), time_column="when").read(path), reference)
    with pytest.raises(CorruptSample, match="it has 7 columns without names; set six: --set imu"):
        Inertial().read(tmp_path / "seven.csv")


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("rate", [25, 400, 1000])
def test_units_of_time(tmp_path, unit, rate):
    values = motion(rate, 0.5)
    times = [1000 * unit + number / rate * unit for number in range(len(values))]
    rows = [[time if unit == 1 else round(time), *row] for time, row in zip(times, values, strict=True)]
    path = write(tmp_path / "a.csv", ["timestamp", *HEADERS[0]], rows)
    torch.testing.assert_close(Inertial().read(path), Inertial(rate=rate).read(values), atol=3e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("time (s)", "s"),
        ("time_s", "s"),
        ("Time [sec]", "s"),
        ("seconds", "s"),
        ("time_ms", "ms"),
        ("time (ms)", "ms"),
        ("time_milliseconds", "ms"),
        ("timems", "ms"),
        ("timestamp_us", "us"),
        ("time (\u00b5s)", "us"),
        ("Timestamp [ns]", "ns"),
    ],
)
def test_units_of_time_that_are_named(tmp_path, name, unit):
    """Of slow and fast recordings alike: steps of 190 ms, and of 0.25 ms."""
    for rate in (1 / 0.19, 4000):
        values = motion(rate, 24 / rate)
        rows = [[number / rate * PER_SECOND[unit], *row] for number, row in enumerate(values)]
        path = write(tmp_path / "a.csv", [name, *HEADERS[0]], rows)
        torch.testing.assert_close(Inertial().read(path), Inertial(rate=rate).read(values), atol=1e-5, rtol=0)
    # other steps would be plausible in another unit
    path = write(
        tmp_path / "a.csv", [name, *HEADERS[0]], [[1.1 * n * PER_SECOND[unit], *row] for n, row in enumerate(values)]
    )
    apart = re.escape(f"its times are {1.1 * PER_SECOND[unit]:g} {unit} apart, which is no plausible rate; set")
    with pytest.raises(CorruptSample, match=apart):
        Inertial().read(path)


def test_times_in_the_plural_name_no_unit(tmp_path):
    values = motion(50, 1)
    rows = [[20 * number, *row] for number, row in enumerate(values)]
    for name, options in (("times", {}), ("time", {}), ("when", {"time_column": "when"})):
        path = write(tmp_path / "a.csv", [name, *HEADERS[0]], rows)
        torch.testing.assert_close(Inertial(**options).read(path), Inertial(rate=50).read(values))
    path = write(tmp_path / "a.csv", ["elapsed_ms", *HEADERS[0]], rows)
    torch.testing.assert_close(Inertial(time_column="elapsed_ms").read(path), Inertial(rate=50).read(values))


@pytest.mark.parametrize("rate", [100, 1000])
def test_numbers_beyond_float32(rate):
    options = {"rate": rate, "acceleration": "g"}
    values = motion(100, 1) / GRAVITY
    values[3, 2], values[50, 1] = np.inf, 1e36  # the one is missing
    assert Inertial(**options).read(values).isfinite().all()
    for large in (1e308, -1e37):
        values[50, 1] = large
        with pytest.raises(CorruptSample, match="the array: its numbers are too large;"):
            Inertial(**options).read(values)


def test_gaps_are_interpolated(tmp_path):
    values = motion(400, 1)
    values[100:103, 4] = np.nan
    path = write(tmp_path / "a.csv", HEADERS[0], [["" if np.isnan(cell) else cell for cell in row] for row in values])
    found = Inertial(rate=400).read(path)[0]
    assert found.isfinite().all()
    ends = values[99, 4], values[103, 4]
    torch.testing.assert_close(found[4, 99:104], torch.linspace(*ends, 5), atol=1e-5, rtol=0)
    # a sample that is not there at all, where there are times
    times = np.delete(np.arange(400) / 400, 200)
    rows = np.concatenate([times[:, None], np.delete(motion(400, 1), 200, axis=0)], axis=1)
    found = Inertial().read(write(tmp_path / "b.csv", ["t", *HEADERS[0]], rows))[0]
    torch.testing.assert_close(found[:, :400], expected(1), atol=1e-4, rtol=0)


def test_npz_with_rate(tmp_path):
    values = motion(100, 5)
    np.savez(tmp_path / "a.npz", imu=values, rate=100)
    np.save(tmp_path / "b.npy", values.T)
    torch.testing.assert_close(Inertial().read(tmp_path / "a.npz"), Inertial(rate=100).read(tmp_path / "b.npy"))
    np.savez(tmp_path / "c.npz", one=values, two=values)
    with pytest.raises(CorruptSample, match=r"it holds one, two rather than one array \[T, 6\]"):
        Inertial().read(tmp_path / "c.npz")


@pytest.mark.parametrize("rate", [0, -100, math.nan, 1e-9, 1e9])
def test_rates_that_cannot_be(tmp_path, rate):
    np.savez(tmp_path / "a.npz", imu=motion(100, 1), rate=rate)
    with pytest.raises(CorruptSample, match="samples a second is not plausible"):
        Inertial().read(tmp_path / "a.npz")


def test_units_become_si():
    values = motion(400, 5)
    others = values / np.array([GRAVITY] * 3 + [math.radians(1)] * 3)
    found = Inertial(rate=400, acceleration="g", rotation="deg/s").read(others)
    torch.testing.assert_close(found[0], expected(5), atol=1e-5, rtol=1e-5)


def test_hardly_true_units_are_complained_of():
    values = motion(400, 1)
    in_g = values / np.array([GRAVITY] * 3 + [1] * 3)
    in_degrees = 30 * values / np.array([30] * 3 + [math.radians(1)] * 3)
    cases = (
        (Inertial(rate=400), in_g, r"mostly 0.995 m/s\^2, and rest would be 1 g: set acceleration to g\."),
        (Inertial(rate=400, acceleration="g"), values, r"mostly 9.\d+ g, .*: set acceleration to m/s\^2\."),
        (Inertial(rate=400), in_g / 50, "gravity seems to be left out"),
        (Inertial(rate=400), in_degrees, "over 2000 degrees a second: set rotation to deg/s"),
    )
    for inertial, array, sentence in cases:
        with pytest.warns(UnitWarning, match=f"^the array is hardly in the units said: .*{sentence}"):
            inertial.read(array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Inertial(rate=400).read(values)


def test_windows():
    values = motion(400, 12)
    whole = expected(12)
    windows = Inertial(rate=400).read(values)
    assert len(windows) == 3
    for window, begin in zip(windows, (0, 1400, 2800), strict=True):
        torch.testing.assert_close(window, whole[:, begin : begin + 2000])
    (centre,) = Inertial(rate=400, windows="centre").read(values)
    torch.testing.assert_close(centre, whole[:, 1400:3400])
    (at,) = Inertial(rate=400).read_part(values, (2.5, 4.0))
    torch.testing.assert_close(at, whole[:, 1000:3000])
    first, last = Inertial(rate=400).read_part(values, (1.0, 6.0))
    torch.testing.assert_close(first, whole[:, 400:2400])
    torch.testing.assert_close(last, whole[:, 800:2800])
    (middle,) = Inertial(rate=400, windows="centre").read_part(values, (1.0, 6.0))
    torch.testing.assert_close(middle, whole[:, 600:2600])
    (end,) = Inertial(rate=400).read_part(values, (11.0, math.inf))
    torch.testing.assert_close(end[:, :400], whole[:, 4400:])
    assert (end[:, 400:] == whole[:, -1:]).all()
    for start in (12.0, -1.0):
        with pytest.raises(CorruptSample, match=f"it lasts 12 s, and a window is to begin at {start:g} s"):
            Inertial(rate=400).read_part(values, (start, 5.0))


def test_samples():
    inertial = Inertial(**SMALL, rate=400)
    values, whole = motion(400, 12), expected(12)
    samples = [inertial.sample(values, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert samples[0].shape == (6, 2000)
    assert samples[0].equal(samples[1])
    assert not samples[0].equal(samples[2])
    begins = [int((whole[3:, :] - sample[3:, :1]).abs().sum(dim=0).argmin()) for sample in samples]
    for sample, begin in zip(samples, begins, strict=True):
        torch.testing.assert_close(sample, whole[:, begin : begin + 2000])
    torch.testing.assert_close(inertial.sample(values, torch.Generator(), start=2.5), whole[:, 1000:3000])
    assert inertial.build(5)(samples[0][None]).shape == (1, 5)


def test_encoder_is_the_published_one():
    assert sum(parameter.numel() for parameter in Inertial().build(1024).parameters()) == 19_600_384
    modality = Inertial(columns=tuple("abcdef"), rate=50)
    assert from_json(to_json(modality)) == modality


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        ("ax,ay,az,gx,gy\n1,2,3,4,5", "no column of gyroscope z among ax, ay, az, gx, gy; set six"),
        ("ax,ay,az,gx,gy,gz,gyro_x\n1,2,3,4,5,6,7", "several columns of gyroscope x among"),
        ("t,time,ax,ay,az,gx,gy,gz\n" + 2 * "1,2,3,4,5,6,7,8\n", "several columns of time; set one, as in --set"),
        ("ax,ay,az,gx,gy,gz\n1,2,3,4,5,6\n1,2,3,x,5,6", "line 3 does not hold the numbers that the others do"),
        ("1,2,3,4,5,6\n1,2,3", "line 2 does not hold the numbers"),
        ("ax,ay,az,gx,gy,gz\n1,2,3,4,5,6\n1,2,3,4,5,6", "how many samples a second it has; set its rate, as in --set"),
        ("t,ax,ay,az,gx,gy,gz\n0,1,2,3,4,5,6", "fewer than two samples"),
        ("t,ax,ay,az,gx,gy,gz\n0,1,2,3,4,5,6\n0,1,2,3,4,5,6", "its times do not rise"),
        ("t,ax,ay,az,gx,gy,gz\n0,1,2,3,4,5,6\n1e-7,1,2,3,4,5,6", "its times are 1e-07 apart"),
        ("t,ax,ay,az,gx,gy,gz\n0,1,2,3,4,,6\n0.1,1,2,3,4,,6", "its column of gyroscope y is empty"),
    ],
)
def test_errors(tmp_path, content, reason):
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorruptSample, match=f"a.csv: .*{reason}"):
        Inertial().read(path)


def test_more_errors(tmp_path):
    with pytest.raises(CorruptSample, match="there is no such file"):
        Inertial().read(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(CorruptSample, match="it is no table of text"):
        Inertial().read(tmp_path / "a.csv")
    (tmp_path / "long.csv").write_text("1," * 5 + "2" * 200_000)
    with pytest.raises(CorruptSample, match="it is no table: field larger than field limit"):
        Inertial().read(tmp_path / "long.csv")
    with pytest.raises(CorruptSample, match=r"its shape is \[5, 7\] rather than \[T, 6\] or \[6, T\]"):
        Inertial(rate=50).read(np.zeros((5, 7)))
    write(tmp_path / "b.csv", HEADERS[0], motion(50, 1))
    with pytest.raises(CorruptSample, match="it has no column gyro_w among accel_x"):
        Inertial(rate=50, columns=("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_w")).read(
            tmp_path / "b.csv"
        )
    with pytest.raises(VitrailError, match=r"Inertial.columns are 3; give six"):
        Inertial(columns=("a", "b", "c"))
    with pytest.raises(VitrailError, match=r"Inertial.rate is 0"):
        Inertial(rate=0.0)


@pytest.mark.shared
@pytest.mark.skipif(not ACTIONS.exists(), reason="the real data are not beside the repository")
def test_real_motion():
    inertial = Inertial(rate=50, acceleration="g", rotation="deg/s")
    with np.load(ACTIONS) as actions:
        for name in actions.files[::200]:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                windows = inertial.read(actions[name])
            assert windows.shape[1:] == (6, 2000)
            assert 0.5 * GRAVITY < windows[0, :3].norm(dim=0).median() < 2 * GRAVITY
