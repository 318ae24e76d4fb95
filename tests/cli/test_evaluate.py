"""`vitrail evaluate` of codecs: what it prints and writes, and what it refuses."""

import csv
import json
import shutil
from itertools import pairwise

import pytest

from vitrail.cli.evaluate import PEERS
from vitrail.cli.main import main
from vitrail.compress import Codec
from vitrail.compress.evaluation.classical import CLASSICAL
from vitrail.data.images import read_image

TINY = ["--autoencoder.width", "16", "--autoencoder.depth", "1", "--autoencoder.heads", "2", "--prior.width", "16"]
TINY += ["--prior.depth", "1", "--prior.heads", "2", "--loop.steps", "2", "--loop.batch-size", "4"]
TINY += ["--loop.accelerator", "cpu", "--loader.workers", "0"]


@pytest.fixture(scope="module")
def pictures(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        shutil.copy(photos / "test" / "banana" / f"{number:02}.webp", folder)
    return folder


@pytest.fixture(scope="module")
def codec(pictures, tmp_path_factory):
    """The folder of a nested codec of four qualities, trained for two steps."""
    folder = tmp_path_factory.mktemp("codec") / "run"
    assert main(["train", "compress_mini", "-o", str(folder), *TINY, "--validation", str(pictures)]) == 0
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_peers_are_all_classical_codecs():
    assert tuple(CLASSICAL) == PEERS  # written twice, since help must not load torch


def test_a_codec_beside_the_classical_ones(codec, pictures, tmp_path, capsys):
    command = ["evaluate", str(codec), "--data", str(pictures), "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*command, "--qualities", "1", "4", "--peers", "jpeg", "webp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    means = rows(tmp_path / "out" / "means.csv")
    assert [(row["codec"], int(row["quality"])) for row in means] == [
        (str(codec), 1),
        (str(codec), 4),
        *((name, quality) for name in ("jpeg", "webp") for quality in CLASSICAL[name].qualities),
    ]
    assert lines[2].startswith(f"| {codec} | 1 | {float(means[0]['bpp']):.4f} | {float(means[0]['psnr']):.2f} |")
    assert lines[-1].startswith("| webp | ") and lines[-1].endswith(" % |")
    images = rows(tmp_path / "out" / "images.csv")
    assert len(images) == 2 * len(means)
    loaded = Codec.load(str(codec))
    for row in images:
        if row["codec"] == str(codec):
            assert int(row["bytes"]) == len(loaded.compress(read_image(row["image"]), int(row["quality"])))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "images.csv",
        "means.csv",
        "psnr.png",
        "ms_ssim.png",
    }


def test_json_has_all_qualities_of_a_codecs_file_by_default(codec, pictures, tmp_path, capsys):
    saved = tmp_path / "saved.safetensors"
    Codec.load(codec).save(saved)
    command = ["evaluate", str(saved), "--data", str(pictures / "00.webp"), "--device", "cpu", "--json"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(figure["quality"], figure["images"], figure["features"]) for figure in figures] == [
        (quality, 1, None) for quality in (1, 2, 3, 4)
    ]
    assert all(first["bpp"] < second["bpp"] for first, second in pairwise(figures))


def test_a_quality_that_is_named_twice_is_measured_once(codec, pictures, tmp_path, capsys):
    command = ["evaluate", str(codec), "--data", str(pictures), "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*command, "--qualities", "2", "1", "2", "--json"]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(figure["quality"], figure["images"]) for figure in figures] == [(2, 2), (1, 2)]


def test_what_is_not_finite_is_null_in_json(codec, pictures, tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Codec, "decompress", lambda *_: Image.new("RGB", (40, 40)))  # nothing is lost
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    command = ["evaluate", str(codec), "--data", str(tmp_path / "black.png"), "--device", "cpu", "--json"]
    assert main([*command, "--qualities", "1", "-o", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    figures = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert figures["psnr"] is None and figures["ms_ssim"] == 1


def test_the_networks_of_fid_and_kid_are_named(codec, run, pictures, tmp_path, capsys):
    from PIL import Image

    with Image.open(pictures / "00.webp") as photo:
        photo.resize((512, 512)).save(tmp_path / "large.png")
    command = ["evaluate", str(codec), "--data", str(tmp_path / "large.png"), "--device", "cpu", "--qualities", "1"]
    assert main([*command, "-o", str(tmp_path / "out"), "--features", str(run)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"by the features of {run}.")
    (row,) = rows(tmp_path / "out" / "means.csv")
    assert row["features"] == str(run) and float(row["fid"]) > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sizes", "32"], "--sizes is for classifiers, which {codec} is none of; leave it out."),
        (["--on-corrupt", "skip"], "--on-corrupt is for classifiers"),
        (["--qualities", "9"], "has no quality 9; choose 1 to 4."),
        (["--features", "nowhere"], "There is no checkpoint nowhere"),
    ],
)
def test_what_a_codec_has_no_use_for_is_refused(codec, pictures, tmp_path, capsys, options, sentence):
    output = tmp_path / "out"
    command = ["evaluate", str(codec), "--data", str(pictures), "--device", "cpu", "-o", str(output), *options]
    assert main(command) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail: ") and sentence.format(codec=codec) in line
    assert not output.exists()


def test_a_folder_of_results_that_cannot_be_made_is_said_before_the_work(
    codec, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("vitrail.compress.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("it worked"))
    (tmp_path / "file").touch()
    assert main(["evaluate", str(codec), "--data", str(pictures), "-o", str(tmp_path / "file")]) == 1
    assert "a file stands where its folder should be" in capsys.readouterr().err


def test_what_a_classifier_has_no_use_for_is_refused(run, photos, capsys):
    command = ["evaluate", str(run), "--data", str(photos / "test")]
    for option in (["--peers", "jpeg"], ["--qualities", "1"], ["--features", "x"], ["--output", "y"]):
        assert main([*command, *option]) == 1
        assert f"{option[0]} is for codecs, which {run} is none of; leave it out." in capsys.readouterr().err


def test_codecs_and_classifiers_are_evaluated_apart(codec, run, pictures, capsys):
    assert main(["evaluate", str(codec), str(run), "--data", str(pictures)]) == 1
    assert "Some of the models are classifiers and others codecs; evaluate the kinds apart." in capsys.readouterr().err
