"""The scripts run, small, on files of the layouts that they read: what is held out stays out, every row is there."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.main import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--width", "8", "--depth", "1", "--heads", "1", "--workers", "0", "--precision", "32-true"]


def run(script: str, *options: str | Path) -> str:
    command = [sys.executable, "-W", "error", str(BENCHMARKS / script), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    soundfile = pytest.importorskip("soundfile")
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name in ("mnist", "fsdd", "utd-mhad"):
        (folder / name).mkdir(parents=True)
    for part in ("train", "test"):
        images = random.integers(0, 256, (20, 28, 28), dtype=np.uint8)
        np.savez(folder / "mnist" / f"{part}.npz", images=images, labels=np.arange(20) % 10)
    for number, speaker in enumerate(("ann", "bob", "cat")):
        for digit in range(2):
            path = folder / "fsdd" / f"{digit}_{speaker}_0.flac"
            soundfile.write(path, random.normal(0, 0.1, 2000 + 100 * number), 8000)
    names = [f"a{action}_s{subject}_t1" for action in (1, 27) for subject in (1, 2)]
    depth = {name: random.integers(1000, 3000, (3, 12, 16), dtype=np.uint16) for name in names}
    depth[names[0]][:, 0, 0] = 0
    np.savez(folder / "utd-mhad" / "depth.npz", **depth)
    motion = {name: np.tile([0.0, 0.0, 1.0, 1.0, 2.0, 3.0], (60, 1)) for name in names}
    np.savez(folder / "utd-mhad" / "inertial.npz", **motion)
    return folder


def test_digits(data: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "digits"
    assert "cat are for the test" in run("bind_pairs.py", "digits", "--data", data, "--output", pairs, "--fold", "1")
    labels = {row["image"]: row["text"] for row in read(pairs / "train_image_text.csv")}
    sounds = {row["audio"]: row["text"] for row in read(pairs / "train_audio_text.csv")}
    assert len(labels) == 20 and {Path(path).name for path in sounds} == {
        f"{digit}_{speaker}_0.flac" for digit in (0, 1) for speaker in ("ann", "bob")
    }
    together = read(pairs / "train_image_audio.csv")
    assert len(together) == 40 and all(labels[row["image"]] == sounds[row["audio"]] for row in together)
    assert [row["text"] for row in read(pairs / "test_audio_text.csv")] == ["zero", "one"]

    output = tmp_path / "out"
    options = ["--pairs", pairs, "--output", output, "--seeds", "2", "--epochs", "0.5", *SMALL]
    parts = ["--parts", "emergence", "temperature", "--temperatures", "0.2"]
    printed = run("bind_emergence.py", "digits", *parts, *options)
    rows = read(output / "emergence.csv")
    assert [row["emergence"] for row in rows] == ["emergent", "supervised", "chance"]
    assert float(rows[2]["audio by names (%)"]) == 50  # two digits were spoken
    assert all(0 <= float(row["audio by names (%)"]) <= 100 for row in rows)
    assert rows[0]["image by names (%)"] and not rows[1]["image by names (%)"]
    assert [row["temperature"] for row in read(output / "temperature.csv")] == ["0.1", "0.2", "learned"]
    assert (output / "temperature.md").read_text() in printed
    assert len(list((output / "runs").iterdir())) == 2 * 4
    assert run("bind_emergence.py", "digits", *parts, *options) == printed  # nothing is run again


def test_actions(data: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "actions"
    run("bind_pairs.py", "actions", "--data", data, "--output", pairs)
    rows = {part: read(pairs / f"{part}.csv") for part in ("train", "test")}
    assert {row["imu"] for row in rows["train"]} == {"a1_s1_t1.npz", "a27_s1_t1.npz"}
    assert {row["imu"]: row["text"] for row in rows["test"]} == {"a1_s2_t1.npz": "swipe left", "a27_s2_t1.npz": "squat"}
    assert len(rows["train"]) == 6 and np.asarray(Image.open(pairs / rows["train"][0]["depth"]))[0, 0] == 8000

    output = tmp_path / "out"
    options = ["--pairs", pairs, "--output", output, "--seeds", "1", "--epochs", "1", *SMALL]
    run("bind_emergence.py", "actions", *options)
    found = read(output / "emergence.csv")
    assert [row["emergence"] for row in found] == ["emergent", "supervised", "chance"]
    assert float(found[2]["imu by names (%)"]) == 50 and found[0]["depth by names (%)"]


@pytest.fixture
def tower(photos: Path, tmp_path: Path) -> Path:
    """A run of the recipe of SplitMask in miniature, of one step."""
    sizes = ["--backbone.width", "16", "--backbone.depth", "1", "--backbone.heads", "2", "--tokenizer.words", "8"]
    tiny = ["--data.root", str(photos / "test" / "banana"), "--validation", "None", "--loop.steps", "1"]
    rest = ["--loop.batch-size", "2", "--loader.workers", "0", "--loop.accelerator", "cpu"]
    assert main(["train", "splitmask_mini", "-o", str(tmp_path / "tower"), *sizes, *tiny, *rest]) == 0
    return tmp_path / "tower"


def test_retrieval(tower: Path, tmp_path: Path) -> None:
    random, data = np.random.default_rng(0), tmp_path / "data"
    for name in ("roadscene/visible", "roadscene/thermal", "rgbd-7scenes"):
        (data / name).mkdir(parents=True)
    for number in range(16):
        for name in ("visible", "thermal"):
            Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(
                data / "roadscene" / name / f"{number:02}.jpg"
            )
        frame = data / "rgbd-7scenes" / f"frame-{number:03}"
        Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(f"{frame}.color.jpg")
        Image.fromarray(random.integers(500, 3000, (24, 32), dtype=np.uint16)).save(f"{frame}.depth.png")
    expected = {"roadscene": ("thermal", [3, 7, 11, 15]), "scenes": ("depth", [6, 7, 14, 15])}
    for what, (sense, held_out) in expected.items():
        assert "train.csv: 12 pairs" in run("bind_pairs.py", what, "--data", data, "--output", tmp_path / what)
        rows = {part: read(tmp_path / what / f"{part}.csv") for part in ("train", "test")}
        assert [int("".join(filter(str.isdigit, Path(row["image"]).name))) for row in rows["test"]] == held_out
        assert not {row["image"] for row in rows["train"]} & {row["image"] for row in rows["test"]}
        assert all(Path(row["image"]).name[:6] == Path(row[sense]).name[:6] for part in rows.values() for row in part)

    output = tmp_path / "out"
    options = ["--pairs", tmp_path / "scenes", "--output", output, "--seeds", "1", "--epochs", "1", "--batch-size", "4"]
    printed = run("bind_retrieval.py", "scenes", "--towers", f"mine={tower}", *options, *SMALL)
    rows = {part: read(output / f"{part}.csv") for part in ("alignment", "towers")}
    names = {part: [row[part] for row in found] for part, found in rows.items()}
    assert names == {
        "alignment": ["the same crop"] * 2 + ["two crops"] * 2 + ["chance"],
        "towers": ["untrained"] * 2 + ["mine"] * 2 + ["chance"],
    }
    assert [row["direction"] for row in rows["alignment"][:2]] == ["image to depth", "depth to image"]
    chance = rows["towers"][-1]
    assert (chance["R@1 (%)"], chance["R@5 (%)"], chance["median rank"]) == ("25.0", "100.0", "2.5")
    assert all(float(row["R@10 (%)"]) == 100 for found in rows.values() for row in found)
    assert (output / "towers.md").read_text() in printed
    assert sorted(path.name for path in (output / "runs").iterdir()) == [
        *("mine_aligned_0", "mine_unaligned_0", "untrained_aligned_0")
    ]
    assert run("bind_retrieval.py", "scenes", "--towers", f"mine={tower}", *options, *SMALL) == printed


def test_sun_rgbd(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    scene = tmp_path / "SUNRGBD" / "xtion" / "a" / "0002"
    for name, text in (
        ("scene.txt", "office"),
        ("intrinsics.txt", "570.25 0 365"),
        ("image/1.jpg", ""),
        ("depth_bfx/9.png", ""),
    ):
        (scene / name).parent.mkdir(parents=True, exist_ok=True)
        (scene / name).write_text(text)
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = "/n/fs/sun3d/data/SUNRGBD/xtion/a/0002"
    (tmp_path / "SUNRGBDtoolbox" / "traintestSUNRGBD").mkdir(parents=True)
    scipy.savemat(tmp_path / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat", {"alltrain": cells})
    run("bind_pairs.py", "sunrgbd", "--data", tmp_path, "--output", tmp_path / "pairs")
    (row,) = read(tmp_path / "pairs" / "train.csv")
    files = {"image": str(scene / "image/1.jpg"), "depth": str(scene / "depth_bfx/9.png")}
    assert row == {**files, "depth.sensor": "xtion", "depth.focal_length": "570.25"}
