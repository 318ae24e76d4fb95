"""Fields of senses on the command line, and the options of an index: a model of motion, and recordings in g."""

import json

import numpy as np
import pytest
import torch

from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.modalities.imu import Inertial
from vitrail.cli.main import main

SETTINGS = {"imu": {"acceleration": "g", "rate": 100.0}}
SET = ["--set", "imu.acceleration=g", "--set", "imu.rate=100"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    ImageBindConfig(8, {"imu": Inertial(width=16, depth=1, heads=2)}).build().save(path)
    return path


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number, seconds in enumerate((5, 12)):
        motion = np.random.default_rng(number).normal(0, 0.3, (100 * seconds, 6))
        motion[:, 2] += 1
        np.save(folder / f"{number}.npy", motion)
    return folder


def run(capsys, *words):
    capsys.readouterr()
    code = main(["bind", *map(str, words), "--device", "cpu"])
    return code, capsys.readouterr()


def test_fields_are_set(model, files, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    common = [files, "-o", tmp_path / "made.parquet", "--model", model, "--as", "imu=*.npy"]
    code, said = run(capsys, "embed", *common)
    assert code == 1 and "it does not say how many samples a second it has; set its rate, as in --set imu." in said.err
    assert run(capsys, "embed", *common, *SET)[0] == 0
    expected = ImageBind.load(model, settings=SETTINGS).embed({"imu": sorted(files.iterdir())})["imu"]
    made = parquet.read_table(tmp_path / "made.parquet")["vector"].to_pylist()
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_an_index_stays_as_it_was_made(model, files, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    command = ["index", files, "-o", tmp_path / "index", "--model", model, "--as", "imu=*.npy"]
    code, said = run(capsys, *command, *SET, "--clips")
    assert code == 0 and "2 embedded, 0 unchanged" in said.out
    code, said = run(capsys, *command)  # with its own options
    assert code == 0 and "0 embedded, 2 unchanged" in said.out
    code, said = run(capsys, "search", tmp_path / "index", "--imu", files / "0.npy", "--json")
    hits = [json.loads(line) for line in said.out.splitlines()]
    assert code == 0 and [hit["start"] for hit in sorted(hits, key=lambda hit: (hit["name"], hit["start"]))] == [
        0,
        *(0, 3.5, 7),
    ]
    assert hits[0] == {"similarity": pytest.approx(1), "name": "0.npy", "modality": "imu", "start": 0, "seconds": 5}
    code, said = run(capsys, *command, "--set", "imu.rate=50")
    assert code == 1 and "was made with imu.rate 100, not 50; do it alike, or choose another folder" in said.err
    for path in files.iterdir():
        path.unlink()
    code, said = run(capsys, *command)
    assert code == 0 and "0 embedded, 0 unchanged, 2 forgotten" in said.out


def test_clips_cannot_be_asked_for_later(model, files, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    command = ["index", files, "-o", tmp_path / "index", "--model", model, "--as", "imu=*.npy", *SET]
    assert run(capsys, *command)[0] == 0
    code, said = run(capsys, *command, "--clips")
    assert code == 1 and "was made with clips unset, not True; do it alike, or choose another folder" in said.err


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("imu.rate", "--set imu.rate is not SENSE.FIELD=VALUE, such as imu.rate=100."),
        ("smell.rate=1", "smell.rate is no SENSE.FIELD to set; the senses are image, "),
        ("imu=1", "imu is no SENSE.FIELD to set"),
        ("imu.unit=g", "imu has no field 'unit'; choose among acceleration, "),
        ("imu.acceleration=G", "imu.acceleration is 'G'; it must be one of m/s^2, g."),
        ("imu.width=24", "does not fit the model that it describes"),
        ("audio.clips=3", "The model has no modality 'audio' but imu; choose among these."),
    ],
)
def test_what_cannot_be_set(model, files, tmp_path, capsys, setting, sentence):
    command = ["embed", files, "-o", tmp_path / "made.parquet", "--model", model, "--as", "imu=*.npy"]
    code, said = run(capsys, *command, "--set", setting)
    assert code == 1 and sentence in said.err and not (tmp_path / "made.parquet").exists()


def test_evaluation(model, files, tmp_path, capsys):
    (tmp_path / "table.csv").write_text("imu,label\nfiles/0.npy,a\nfiles/1.npy,b\nfiles/0.npy,a\nfiles/1.npy,b\n")
    train = ["--train", str(tmp_path / "table.csv"), "--shots", "1", "--json", "--device", "cpu"]
    command = ["evaluate", str(model), "--data", str(tmp_path / "table.csv"), *train]
    assert main(command) == 1
    assert "does not say how many samples a second" in capsys.readouterr().err
    assert main([*command, *SET]) == 0
    assert json.loads(capsys.readouterr().out)["top1_of_1_shot"] == 1
