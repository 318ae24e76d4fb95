"""Tables of pairs: whose crops and windows belong together, and whose do not."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.imu import GRAVITY, Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.training.pairs import PairTable
from vitrail.data.corrupt import CorruptSample
from vitrail.data.loader import LoaderConfig, training_batches
from vitrail.errors import FileError, VitrailError

SMALL = {"width": 8, "depth": 1, "heads": 2}
PLAIN = {**SMALL, "size": 16, "erasing": 0.0}


@dataclass(frozen=True, kw_only=True)
class Wrist(Inertial):
    """Another recording of the same motion."""

    name: ClassVar[str] = "wrist"


THERMAL = Thermal(**PLAIN, deep="full")
DEPTH = Depth(**PLAIN, mean=0.0, std=1.0, baseline=1.0, focal_length=1.0)


def test_crops_are_aligned(scenes):
    pairs = PairTable(scenes, THERMAL, DEPTH)
    torch.manual_seed(0)
    spreads = []
    for number in range(3):
        thermal, depth = pairs[number]
        assert thermal.shape == depth.shape == (1, 16, 16)
        torch.testing.assert_close(thermal, depth, atol=0.01, rtol=0)
        spreads.append(float(thermal.max() - thermal.min()))
        assert number / 5 < thermal.min() < thermal.max() < (number + 2) / 5
    assert min(spreads) > 0.03


def test_the_first_picture_may_be_an_array(scenes):
    columns = ("depth", "thermal")
    depth, thermal = PairTable(scenes, DEPTH, THERMAL, columns=columns)[0]
    torch.testing.assert_close(thermal, depth, atol=0.01, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crops_are_mirrored_as_often_as_the_first_sense_says(scenes, flip):
    pairs = PairTable(scenes, replace(THERMAL, flip=flip), replace(DEPTH, flip=1 - flip))
    torch.manual_seed(0)
    for number in range(8):
        for picture in pairs[number % 3]:  # brighter to the right
            assert (picture[0, :, -1] < picture[0, :, 0]).all() == bool(flip)


def test_crops_are_not_aligned_on_wish(scenes):
    pairs = PairTable(scenes, THERMAL, DEPTH, aligned=False)
    torch.manual_seed(0)
    apart = [float((pair.first - pair.second).abs().mean()) for pair in (pairs[number % 3] for number in range(9))]
    assert np.median(apart) > 0.03


def test_texts_stand_in_the_table(scenes):
    text = Text(**SMALL)
    pairs = PairTable(scenes, THERMAL, text, columns=("thermal", "caption"))
    assert pairs[1].second.equal(text.read("scene 1, as it is")[0])


def test_samples_follow_the_global_generator_and_the_loader(scenes):
    pairs = PairTable(scenes, THERMAL, DEPTH, replication=2.0)
    torch.manual_seed(3)
    first = pairs[0]
    torch.manual_seed(3)
    assert first.first.equal(pairs[0].first)
    assert not first.first.equal(pairs[0].first)
    batches = training_batches(pairs, batch_size=6, steps=1, loader=LoaderConfig(workers=0))
    (batch,) = batches
    assert batch.first.shape == batch.second.shape == (6, 1, 16, 16)
    torch.testing.assert_close(batch.first, batch.second, atol=0.01, rtol=0)


@pytest.mark.parametrize(("replication", "length"), [(1.0, 3), (50.0, 150), (4 / 3, 4), (2 / 3, 2)])
def test_replication(scenes, replication, length):
    pairs = PairTable(scenes, THERMAL, DEPTH, replication=replication)
    assert len(pairs) == length
    torch.manual_seed(0)
    assert pairs[length - 1].first.min() > (length - 1) % 3 / 5
    with pytest.raises(IndexError):
        pairs[length]


@pytest.fixture
def recordings(tmp_path):
    """Two sensors of 100 and 50 Hz whose first value of rotation is the time."""
    for name, rate, seconds in (("a", 100, 30), ("b", 50, 20)):
        times = np.arange(rate * seconds) / rate
        still = np.tile([0.0, 0, GRAVITY, 0, 0, 0], (len(times), 1))
        still[:, 3] = times
        np.savez(tmp_path / f"{name}.npz", imu=still, rate=rate)

    def table(*parts):
        lines = ["imu,wrist,start,seconds", *(f"a.npz,b.npz,{part}" for part in parts)]
        (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / "pairs.csv"

    return table


def begins(pairs, number=0, times=12):
    """Seconds where both windows begin, drawn several times."""
    torch.manual_seed(0)
    drawn = [pairs[number] for _ in range(times)]
    return np.array([[float(pair.first[3, 0]), float(pair.second[3, 0])] for pair in drawn])


def test_windows_are_aligned_in_time(recordings):
    table = recordings(",", "12,", "3,7")
    found = begins(PairTable(table, Inertial(**SMALL), Wrist(**SMALL)))
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=2e-3)
    assert 0 <= found.min() < 4
    assert 11 < found.max() <= 15 + 1e-3  # the shorter one lasts 20 s, and a window 5
    for number, (least, greatest) in ((1, (12, 15)), (2, (3, 5))):
        found = begins(PairTable(table, Inertial(**SMALL), Wrist(**SMALL)), number)
        np.testing.assert_allclose(found[:, 0], found[:, 1], atol=2e-3)
        assert least - 2e-3 <= found.min() < found.max() <= greatest + 2e-3
        assert np.ptp(found[:, 0]) > (greatest - least) / 2


def test_windows_are_not_aligned_on_wish(recordings):
    table = recordings(",", "3,7")
    pairs = PairTable(table, Inertial(**SMALL), Wrist(**SMALL), aligned=False)
    found = begins(pairs)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 3
    assert found[:, 0].max() > 15  # each in its own length
    found = begins(pairs, 1)
    assert 3 - 2e-3 <= found.min() < found.max() <= 5 + 2e-3
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.5


def test_parts_that_go_beyond_a_recording(recordings):
    """They end with it; they do not begin after it."""
    pairs = PairTable(recordings("3,100", "20,5", "31,"), Inertial(**SMALL), Wrist(**SMALL))
    found = begins(pairs)
    assert 3 - 2e-3 <= found.min() < found.max() <= 15 + 2e-3  # b lasts 20 s, and a window 5
    for number, name, seconds, begin in ((1, "b", 20, 20), (2, "a", 30, 31)):
        with pytest.raises(
            CorruptSample, match=rf"{name}\.npz: it lasts {seconds} s, and a part is to begin at {begin}"
        ):
            pairs[number]


@pytest.mark.parametrize("aligned", [True, False])
def test_parts_that_begin_after_a_sound(recordings, tmp_path, aligned):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.zeros(4 * 16_000), 16_000)
    recordings()
    (tmp_path / "one.csv").write_text("imu,audio,start,seconds\na.npz,a.wav,3,5\na.npz,a.wav,4,5\n", encoding="utf-8")
    pairs = PairTable(tmp_path / "one.csv", Inertial(**SMALL), Audio(**SMALL), aligned=aligned)
    assert pairs[0].second.shape == (1, 128, 204)
    for read in (pairs.__getitem__, pairs.read):
        with pytest.raises(CorruptSample, match=r"a\.wav: it lasts 4 s, and a part is to begin at 4 s"):
            read(1)


def test_a_part_holds_for_one_sense_too(recordings, tmp_path):
    (tmp_path / "one.csv").write_text("text,imu,start,seconds\na walk,a.npz,21.5,5\n", encoding="utf-8")
    pairs = PairTable(tmp_path / "one.csv", Text(**SMALL), Inertial(**SMALL))
    recordings()
    assert float(pairs[0].second[3, 0]) == pytest.approx(21.5, abs=2e-3)


def test_evaluations_read_the_part_of_the_row(recordings):
    pairs = PairTable(recordings(",", "12,", "3,7", ",5"), Inertial(**SMALL), Wrist(**SMALL))
    found = [[[float(window[3, 0]) for window in windows] for windows in pairs.read(number)] for number in range(4)]
    ends = [25, 15], [25, 15], [5, 5], [0, 0]  # where the last window begins
    for (first, second), begin, (last, other) in zip(found, (0, 12, 3, 0), ends, strict=True):
        assert [first[0], second[0]] == pytest.approx([begin, begin], abs=2e-3)
        assert [first[-1], second[-1]] == pytest.approx([last, other], abs=2e-3)
    assert [(len(first), len(second)) for first, second in found] == [(6, 4), (4, 2), (2, 2), (1, 1)]


def test_parquet(scenes):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = scenes.with_suffix(".parquet")
    columns = {"thermal": ["2.tiff", "1.tiff"], "depth": ["2.npy", "1.npy"], "start": [None, 1.0]}
    parquet.write_table(arrow.table(columns), path)
    pairs = PairTable(path, THERMAL, DEPTH)
    assert len(pairs) == 2
    assert pairs[0].first.min() > 2 / 5
    path.write_bytes(b"no table")
    with pytest.raises(FileError, match=r"Cannot read .*pairs.parquet: .*; check the file"):
        PairTable(path, THERMAL, DEPTH)


def test_fields_that_hold_for_a_row(tmp_path):
    np.save(tmp_path / "depth.npy", np.full((16, 16), 2.0))
    rows = ["depth.npy,a,,", "depth.npy,a,realsense,", "depth.npy,a,xtion,100", "depth.npy,a,,"]
    (tmp_path / "pairs.csv").write_text("\n".join(["depth,text,depth.sensor,depth.focal_length", *rows]))
    depth = Depth(**PLAIN, mean=0.0, std=1.0)
    pairs = PairTable(tmp_path / "pairs.csv", Text(**SMALL), depth, replication=2.0)
    expected = [0.075 * 518.86, 0.095 * 691.58, 0.095 * 100, 0.075 * 518.86]
    made = [float(pairs[number].second.mean()) for number in range(8)]
    np.testing.assert_allclose(made, [value / 2 for value in expected * 2], rtol=1e-6)
    assert pairs.senses(2)[1] == replace(depth, sensor="xtion", focal_length=100.0)
    assert pairs.senses(3) == (Text(**SMALL), depth)


def test_the_part_follows_the_rate_of_the_row(tmp_path):
    still = np.tile([0.0, 0, GRAVITY, 0, 0, 0], (2000, 1))
    still[:, 3] = np.arange(2000) / 100
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", still)
    (tmp_path / "pairs.csv").write_text("imu,wrist,imu.rate,wrist.rate\na.npy,b.npy,100,200\na.npy,b.npy,200,200\n")
    pairs = PairTable(tmp_path / "pairs.csv", Inertial(**SMALL), Wrist(**SMALL))
    found = begins(pairs)
    assert 3.5 < found[:, 0].max() <= 5 + 1e-2  # the wrist's 2000 samples last 10 s, and a window 5
    np.testing.assert_allclose(found[:, 1], 2 * found[:, 0], atol=2e-2)
    np.testing.assert_allclose(begins(pairs, 1)[:, 0], begins(pairs, 1)[:, 1], atol=2e-2)


@pytest.mark.parametrize(
    ("column", "cell", "sentence"),
    [
        (
            "depth.sensor",
            "kv3",
            r"Row 1 of .* has a setting that cannot be: depth\.sensor is 'kv3'; it must be one of kv1, kv2, ",
        ),
        ("depth.focal_length", "x", r"depth\.focal_length is 'x'; it must be a number"),
        ("depth.focal_length", "-1", r"has a setting that cannot be: Depth.focal_length is -1.0; it must be above 0"),
        (
            "depth.lens",
            "1",
            "Row 1 of .* has a setting that cannot be: depth has no field 'lens'; choose among activation, baseline, ",
        ),
    ],
)
def test_fields_that_cannot_be(tmp_path, column, cell, sentence):
    (tmp_path / "pairs.csv").write_text(f"thermal,depth,{column},text.x\na,b,{cell},1\n")
    with pytest.raises(FileError, match=sentence):
        PairTable(tmp_path / "pairs.csv", THERMAL, DEPTH)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "There is no pair in"),
        ("thermal,depth\n", "There is no pair in"),
        ("thermal,metres\na,b", "Row 1 of .* has no 'depth' among thermal, metres"),
        ("thermal,depth\na,b\na,", "Row 2 of .* has no 'depth'"),
        ("thermal,depth,start\na,b,soon", "Row 1 of .* has the start 'soon'; it must be seconds"),
        ("thermal,depth,seconds\na,b,-1", "Row 1 of .* has the seconds '-1'"),
    ],
)
def test_tables_that_are_wrong(tmp_path, content, sentence):
    path = tmp_path / "pairs.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FileError, match=sentence):
        PairTable(path, THERMAL, DEPTH)


def test_other_errors(scenes, tmp_path):
    with pytest.raises(FileError, match="No such file or directory; give a table in UTF-8 or Parquet"):
        PairTable(tmp_path / "none.csv", THERMAL, DEPTH)
    with pytest.raises(VitrailError, match=r"A replication of 0\.1 leaves nothing"):
        PairTable(scenes, THERMAL, DEPTH, replication=0.1)
    (tmp_path / "0.tiff").unlink()
    with pytest.raises(CorruptSample, match=r"0.tiff: there is no such file"):
        PairTable(scenes, THERMAL, DEPTH)[0]
