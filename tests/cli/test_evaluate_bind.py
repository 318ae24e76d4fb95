"""`vitrail evaluate` of an ImageBind, a tiny one: against the functions that it stands on."""

import csv
import json
from pathlib import Path

import pytest
import torch

from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.evaluation.datasets import open_data
from vitrail.bind.evaluation.evaluate import embed_items, evaluate_retrieval, few_shot, zero_shot
from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.cli.main import main

ESC10 = Path(__file__).parents[2].parent / "shared" / "data" / "esc10"
TINY = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    senses = {"text": Text(**TINY), "image": Image(**TINY, size=28), "thermal": Thermal(**TINY, size=32)}
    ImageBindConfig(8, senses).build().save(path)
    return path


@pytest.fixture
def data(photos, tmp_path):
    """Three classes of four pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("banana", "lemon", "tomato"):
        found = sorted(photos.glob(f"t*/*{name}*/*.webp"))[:4]
        (folder / name).mkdir()
        for path in found:
            (folder / name / path.name).symlink_to(path)
        assert len(found) == 4
    return folder


def figures(model, capsys, *words, status=0):
    capsys.readouterr()
    assert main(["evaluate", str(model), "--data", *map(str, words), "--device", "cpu", "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_zero_shot(model, data, tmp_path, capsys):
    found = figures(model, capsys, data, "--template", "{}", "--confusion", tmp_path / "c.csv")
    loaded, opened = ImageBind.load(model), open_data(data)
    embedded = embed_items(loaded, opened.items, ["image"])
    expected = zero_shot(ZeroShotClassifier.from_names(loaded, opened.classes, ["{}"]), embedded).compute()
    assert found == {"model": str(model), "senses": ["image"], "files": 12, "skipped": 0, **expected}
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["banana", "lemon", "tomato"]
    assert sum(int(rows[n + 1][n + 1]) for n in range(3)) / 12 == expected["top1"]
    main(["evaluate", str(model), "--data", str(data), "--template", "{}", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "figure", "value"]
    assert lines[1].split() == [str(model), "top1", f"{100 * expected['top1']:.2f}", "%"]


def test_names_and_senses(model, data, capsys):
    """As heat, and as heat and colour together, by other names."""
    labels = ["banana=yellow fruit", "lemon", "tomato=red|round"]
    loaded = ImageBind.load(model)
    opened = open_data(data, "thermal", {"banana": ("yellow fruit",), "lemon": ("lemon",), "tomato": ("red", "round")})
    classifier = ZeroShotClassifier.from_names(loaded, opened.classes)
    for senses in (["thermal"], ["thermal", "image"]):
        found = figures(model, capsys, data, "--sense", *senses, "--labels", *labels)
        expected = zero_shot(classifier, embed_items(loaded, opened.items, senses)).compute()
        assert found["senses"] == senses and found["loss"] == pytest.approx(expected["loss"])


def test_few_shots(model, data, capsys):
    found = figures(model, capsys, data, "--shots", 1, 2)
    opened = open_data(data)
    embedded = embed_items(ImageBind.load(model), opened.items, ["image"])
    expected = few_shot(embedded, list(opened.classes), [1, 2])
    assert [found["top1_of_1_shot"], found["top1_of_2_shot"]] == pytest.approx([expected[1], expected[2]])
    found = figures(model, capsys, data, "--shots", 4, "--train", data)
    expected = few_shot(embedded, list(opened.classes), [4], training=embedded)
    assert found["top1_of_4_shot"] == pytest.approx(expected[4])


def test_retrieval_and_damage(model, data, tmp_path, capsys):
    (data / "bad.png").write_text("nothing")
    rows = ["file,caption", "banana/00.webp,a banana", "banana/00.webp,yellow", "lemon/00.webp,a lemon", "bad.png,x"]
    table = data / "captions.csv"
    first = [sorted((data / name).iterdir())[0].name for name in ("banana", "lemon")]
    rows = [
        row.replace("banana/00.webp", f"banana/{first[0]}").replace("lemon/00.webp", f"lemon/{first[1]}")
        for row in rows
    ]
    table.write_text("\n".join(rows))
    assert main(["evaluate", str(model), "--data", str(table), "--device", "cpu"]) == 1
    assert "bad.png" in capsys.readouterr().err
    found = figures(model, capsys, table, "--on-corrupt", "skip")
    loaded = ImageBind.load(model)
    embedded = embed_items(loaded, open_data(table).items[:2], ["image"])
    expected = evaluate_retrieval(loaded, embedded, "image")
    assert found == {"model": str(model), "senses": ["image"], "files": 2, "skipped": 1, **expected}
    main(["evaluate", str(model), "--data", str(table), "--on-corrupt", "skip", "--device", "cpu"])
    said = capsys.readouterr()
    assert "text to image median rank" in said.out and "bad.png: " in said.err


def test_layouts(model, data, capsys):
    assert main(["evaluate", str(model), "--data", str(data), "--layout", "esc50", "--device", "cpu"]) == 1
    assert "esc50.csv" in capsys.readouterr().err


@pytest.mark.shared
@pytest.mark.skipif(not ESC10.exists(), reason="the real data are not here")
def test_sounds_of_esc10_by_folds(tmp_path, capsys):
    """Two classes, folds 1 and 2: what one fold teaches the other is asked."""
    for folder in ("002 - Rain", "009 - Rooster"):
        (tmp_path / "esc10" / folder).mkdir(parents=True)
        for path in sorted((ESC10 / folder).glob("[12]-*.ogg")):
            (tmp_path / "esc10" / folder / path.name).symlink_to(path)
    torch.manual_seed(0)
    ears = tmp_path / "ears.safetensors"
    ImageBindConfig(16, {"text": Text(**TINY), "audio": Audio(**TINY)}).build().save(ears)
    found = figures(ears, capsys, tmp_path / "esc10", "--layout", "esc10", "--shots", 4)
    assert (found["senses"], found["files"]) == (["audio"], 32)
    assert found["top1_of_4_shot"] > 0.7  # even random weights tell rain from roosters
    found = figures(ears, capsys, tmp_path / "esc10", "--layout", "esc10", "--template", "{}")
    assert found["top5"] == 1 and 0 <= found["top1"] <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sizes", "32"], "--sizes is for classifiers, which"),
        (["--peers", "jpeg"], "--peers is for codecs, which"),
        (["--sense", "smell"], "The model has no modality 'smell'"),
        (["--labels", "banana", "kiwi"], "'lemon'"),
        (["--layout", "esc50", "--labels", "dog"], "leave out --labels or --layout"),
        (["--train", "x"], "--train is for --shots, which this is not"),
        (["--shots", "1", "--template", "{}"], "--template is for zero-shot classification, which"),
        (["--shots", "1", "--confusion", "c.csv"], "--confusion is for zero-shot"),
        (["--shots", "9"], "The class 'banana' has 4 samples to learn from, not 9"),
        (["--confusion", "c.xyz"], "Cannot draw c.xyz"),
    ],
)
def test_mistakes(model, data, capsys, options, sentence):
    assert main(["evaluate", str(model), "--data", str(data), "--device", "cpu", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail: ") and sentence in line
