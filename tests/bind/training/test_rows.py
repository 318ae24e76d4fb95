"""Pairs in tars: their members are found, read as they lie there, and named where they are bad."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from vitrail.bind import ImageBindConfig
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.imu import GRAVITY, Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.training.binding import BindTask, BindTraining, Pairs
from vitrail.bind.training.pairs import PairTable
from vitrail.data.corrupt import CorruptSample
from vitrail.data.loader import LoaderConfig, evaluation_batches
from vitrail.engine.checkpoint import load
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.errors import FileError
from vitrail.recipes import train

SMALL = {"width": 8, "depth": 1, "heads": 2}
PLAIN = {**SMALL, "size": 16, "erasing": 0.0}
IMAGE = Image(**SMALL, size=16, patch_size=8, colour_jitter=0.0)
THERMAL = Thermal(**PLAIN, deep="full")
DEPTH = Depth(**PLAIN, mean=0.0, std=1.0, baseline=1.0, focal_length=1.0)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def png(value):
    file = io.BytesIO()
    Pillow.new("RGB", (20, 16), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def npz(seconds=20, rate=50):
    """A recording whose first value of rotation is the time."""
    times = np.arange(rate * seconds) / rate
    still = np.tile([0.0, 0, GRAVITY, 0, 0, 0], (len(times), 1))
    still[:, 3] = times
    file = io.BytesIO()
    np.savez(file, imu=still, rate=rate)
    return file.getvalue()


def sounds(count=2):
    soundfile = pytest.importorskip("soundfile")
    made = []
    for number in range(count):
        file = io.BytesIO()
        noise = np.random.default_rng(number).normal(0, 0.1, 32000)
        soundfile.write(file, noise, 16000, format="FLAC")
        made.append(file.getvalue())
    return made


@pytest.fixture
def shards(tmp_path):
    """Two tars of two samples each, of pictures, their grey value in heat, and text."""
    for shard in range(2):
        members = {}
        for number in range(2):
            value = 50 * (2 * shard + number)
            members[f"a/{number:03}.png"] = png(value)
            members[f"a/{number:03}.thermal.png"] = png(value)
            members[f"a/{number:03}.txt"] = f"value {value}\n".encode()
        write_tar(tmp_path / f"pairs-{shard:03}.tar", members)
    return tmp_path / "pairs-{000..001}.tar"


def test_members_are_of_the_senses_that_their_suffixes_say(shards):
    pairs = PairTable(shards, IMAGE, THERMAL)
    assert len(pairs) == 4
    for number in range(4):
        image, thermal = pairs[number]
        grey = (image[0] * 0.26862954 + 0.48145466).mean()
        assert float(grey) == pytest.approx(50 * number / 255, abs=1e-5)
        assert float(thermal.mean()) == pytest.approx(50 * number / 255, abs=1e-5)
    texts = PairTable(shards, THERMAL, Text(**SMALL))
    assert texts[3].second.equal(Text(**SMALL).read("value 150")[0])
    swapped = PairTable(shards, IMAGE, THERMAL, columns=("thermal.png", "png"))
    assert swapped[1].second.equal(torch.full((1, 16, 16), 50 / 255))


def test_the_same_pairs_as_from_files(shards, tmp_path):
    lines = ["image,thermal"]
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(50 * number))
        lines.append(f"{number}.png,{number}.png")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    both = [PairTable(path, IMAGE, THERMAL, replication=1.5) for path in (tmp_path / "pairs.csv", shards)]
    assert [len(pairs) for pairs in both] == [6, 6]
    for number in range(6):
        made = []
        for pairs in both:
            torch.manual_seed(number)
            made.append(pairs[number])
        assert made[0].first.equal(made[1].first) and made[0].second.equal(made[1].second)


def test_sounds_and_globs(tmp_path):
    first, second = sounds()
    write_tar(tmp_path / "s-0.tar", {"x.png": png(1), "x.flac": first, "x.cls": b"3"})
    write_tar(tmp_path / "s-1.tar", {"y.jpg": png(2), "y.flac": second})
    audio = Audio(**SMALL, frequency_mask=0)
    pairs = PairTable(tmp_path / "s-*.tar", IMAGE, audio)
    (tmp_path / "y.flac").write_bytes(second)
    assert pairs[1].second.equal(audio.read(tmp_path / "y.flac")[0])


def test_the_part_that_json_says(tmp_path):
    parts = [{"start": 3, "seconds": 7.0, "place": "hall", "imu.windows": "centre"}, {}]
    members = {}
    for number, part in enumerate(parts):
        members |= {f"{number}.txt": b"a walk", f"{number}.imu.npz": npz(), f"{number}.json": json.dumps(part).encode()}
    pairs = PairTable(write_tar(tmp_path / "p.tar", members), Text(**SMALL), Inertial(**SMALL))
    assert [pairs.senses(number)[1].windows for number in range(2)] == ["centre", "all"]
    torch.manual_seed(0)
    begins = np.array([[float(pairs[number].second[3, 0]) for _ in range(9)] for number in range(2)])
    assert 3 - 2e-3 <= begins[0].min() < begins[0].max() <= 5 + 2e-3
    assert begins[1].max() > 6


def test_bad_members_are_named_and_nothing_stays(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    bad = {"0.png": png(0), "0.thermal.png": png(0)[:40], "1.png": png(1), "1.thermal.png": png(1)}
    pairs = PairTable(write_tar(tmp_path / "bad.tar", bad), IMAGE, THERMAL)
    with pytest.raises(CorruptSample, match=r"Cannot read .*bad.tar/0.thermal.png: ") as caught:
        pairs[0]
    assert caught.value.path == f"{tmp_path}/bad.tar/0.thermal.png"
    batches = evaluation_batches(pairs, batch_size=4, loader=LoaderConfig(workers=0, on_corrupt="skip"))
    assert [len(batch.first) for batch in batches] == [1]
    assert list(batches.corrupt) == [f"{tmp_path}/bad.tar/0.thermal.png"]
    text = PairTable(write_tar(tmp_path / "t.tar", {"0.png": png(0), "0.txt": b"\xff\xfe"}), IMAGE, Text(**SMALL))
    with pytest.raises(CorruptSample, match=r"t.tar/0.txt: it is not text in UTF-8"):
        text[0]
    (tmp_path / "t.tar").unlink()
    with pytest.raises(CorruptSample, match=r"t.tar/0.png: No such file"):
        text[0]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({}, "There is no pair in .*x.tar; give tars with a sample for each"),
        ({"0.png": b""}, r"The sample 0 of .*x.tar has no member of 'thermal' among png; name the suffixes as columns"),
        ({"0.png": b"", "0.jpg": b"", "0.thermal.png": b""}, "has several members of 'image' among png, jpg"),
        ({"0.png": b"", "0.thermal.png": b"", "0.json": b"{"}, r"Cannot read .*x.tar/0.json: .*; mend the JSON"),
        ({"0.png": b"", "0.thermal.png": b"", "0.json": b'{"start": "x"}'}, "The sample 0 of .* has the start 'x'"),
        ({"0.png": b"", "0.thermal.png": b"", "0.json": b'{"start": [1]}'}, r"has the start \[1\]; it must be seconds"),
    ],
)
def test_tars_that_are_wrong(tmp_path, members, sentence):
    with pytest.raises(FileError, match=sentence):
        PairTable(write_tar(tmp_path / "x.tar", members), IMAGE, THERMAL)


def test_tars_that_are_damaged_or_missing(shards, tmp_path):
    for pattern, sentence in (
        ("none.tar", r"Cannot read .*none.tar: No such file"),
        ("none-*.tar", r"No tar file matches .*none-\*.tar"),
        ("pairs-{000,002}.tar", r"Cannot read .*pairs-002.tar: No such file"),
    ):
        with pytest.raises(FileError, match=sentence):
            PairTable(tmp_path / pattern, IMAGE, THERMAL)
    path = tmp_path / "pairs-000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileError, match=r"pairs-000.tar \(3,000 bytes\) is truncated, damaged"):
        PairTable(shards, IMAGE, THERMAL)


def test_training_from_tars_resumes_as_if_never_stopped(shards, tmp_path, monkeypatch):
    experiment = BindTraining(
        model=ImageBindConfig(6, {"image": IMAGE, "thermal": THERMAL}),
        pairs=(Pairs(shards, "image", "thermal"),),
        validation=Pairs(shards, "image", "thermal"),
        frozen=(),
        optimizer=OptimizerConfig(lr=0.01, lr_batch_size=None, warmup_epochs=0, schedule="constant"),
        loop=Loop(steps=4, batch_size=2, accelerator="cpu", checkpoint_every=1, evaluate_every=2),
        loader=LoaderConfig(workers=0),
    )
    train(experiment, tmp_path / "whole")
    forward, calls = BindTask.forward, []

    def stopping(self, batch, phase):
        calls.append(phase)
        if calls.count("image_thermal") == 3:
            raise KeyboardInterrupt
        return forward(self, batch, phase)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BindTask, "forward", stopping)
        train(experiment, tmp_path / "stopped")
    train(experiment, tmp_path / "stopped", resume=True)
    whole, stopped = (load(tmp_path / name).tensors("model") for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
