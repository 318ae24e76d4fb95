"""`vitrail bind classify`: against the classifier's own functions, on texts and pictures by a tiny model."""

import io
import json
from pathlib import Path

import pytest
import torch

from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.text import Text
from vitrail.bind.prompts import parse_classes
from vitrail.cli.main import main

TINY = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    ImageBindConfig(8, {"text": Text(**TINY), "image": Image(**TINY, size=28)}).build().save(path)
    return path


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in {"a": "a dog barks", "b": "a cat sleeps", "c": "rain on a roof"}.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def classify(model, capsys, *words, status=0):
    capsys.readouterr()
    assert main(["bind", "classify", *map(str, words), "--model", str(model), "--device", "cpu"]) == status
    return capsys.readouterr()


def test_every_sense_by_its_own_templates(model, files, photos, capsys):
    picture = photos / "test" / "banana" / "00.webp"
    labels = ["dog", "cat|kitten", "other=rain|snow"]
    said = classify(model, capsys, files, picture, "--batch-size", 3, "--top", 2, "--json", "--labels", *labels)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["path"] for line in lines] == [*(str(files / f"{name}.txt") for name in "abc"), str(picture)]
    assert [line["sense"] for line in lines] == ["text"] * 3 + ["image"]
    loaded = ImageBind.load(model)
    for line in lines:
        modality = loaded.modality(line["sense"])
        classifier = ZeroShotClassifier.from_names(loaded, parse_classes(labels), modality.templates)
        source = picture if line["sense"] == "image" else Path(line["path"]).read_text()
        vector = loaded.embed({line["sense"]: [source]})[line["sense"]]
        similarities = classifier.similarities(vector)[0]
        best = similarities.argsort(descending=True)[:2].tolist()
        assert [one["class"] for one in line["classes"]] == [("dog", "cat", "other")[number] for number in best]
        assert [one["similarity"] for one in line["classes"]] == pytest.approx(similarities[best].tolist(), abs=1e-5)
        expected = (similarities.double() / loaded.modality("text").temperature).softmax(0)[best].tolist()
        assert [one["probability"] for one in line["classes"]] == pytest.approx(expected, abs=1e-5)


def test_templates_of_the_command_and_a_file_of_labels(model, files, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("barks\n\na cat sleeps\n")
    words = [f"{files}/*.txt", "--labels", tmp_path / "labels.txt"]
    said = classify(model, capsys, *words, "--template", "a dog {}", "--template", "{}")
    assert [line.split("  ")[0] for line in said.out.splitlines()] == [str(files / f"{name}.txt") for name in "abc"]
    said = classify(model, capsys, *words, "--template", "{}", "--top", "1", "--json")
    second = json.loads(said.out.splitlines()[1])
    assert second["classes"][0]["class"] == "a cat sleeps"
    assert second["classes"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_a_bad_file_is_named_and_the_others_done(model, files, monkeypatch, capsys):
    (files / "b.txt").write_bytes(b"\xff\xff")
    listed = f"{files / 'a.txt'}\n{files / 'b.txt'}\n{files / 'gone.txt'}\n{files / 'c.txt'}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(listed))
    said = classify(model, capsys, "-", "--labels", "dog", "cat", status=1)
    assert [line.split("  ")[0] for line in said.out.splitlines()] == [str(files / "a.txt"), str(files / "c.txt")]
    assert said.err == (
        f"vitrail: Cannot read {files / 'b.txt'}: it is not text in UTF-8; mend it or leave it out.\n"
        f"vitrail: Cannot read {files / 'gone.txt'}: No such file or directory; check the path.\n"
        "vitrail: 2 of 4 files could not be read\n"
    )
    said = classify(model, capsys, files, "--json", "--labels", "dog", "cat", status=1)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert ["classes" in line for line in lines] == [True, False, True] and "not text" in lines[1]["error"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{files}", "--labels", "dog", "dog|cat"], "The class 'dog' comes twice"),
        (["{files}", "--labels", "dog|"], "'dog|' is no class"),
        (["{files}", "--labels", "nowhere.txt"], "Cannot read the classes in nowhere.txt"),
        (["{files}", "--labels", "dog", "--template", "dog"], "are no templates"),
        (["{files}/nothing", "--labels", "dog"], "There is no file"),
        (["{files}", "--labels", "dog", "--as", "audio=*.txt"], "has no modality 'audio'"),
    ],
)
def test_mistakes(model, files, capsys, words, sentence):
    said = classify(model, capsys, *(word.format(files=files) for word in words), status=1)
    assert said.out == "" and sentence in said.err
