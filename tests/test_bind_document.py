"""The seventh sense of docs/bind.md works as it is written there."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vitrail.backbones import MODELS
from vitrail.bind import modalities
from vitrail.bind.evaluation.layouts import LAYOUTS
from vitrail.cli.main import build_parser, main
from vitrail.recipes import load_recipe
from vitrail.weights import find_weights

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "bind.md").read_text(encoding="utf-8")
CHAPTER = DOCUMENT[DOCUMENT.index("## A seventh sense") :]
MODULE = "vitrail.bind.modalities.touch"


def touched(path, number, generator):
    """A few maps of a spot or of a line, in kilopascal, under noise."""
    rows, columns = np.mgrid[:32, :32]
    away = (rows - 16) ** 2 + ((columns - 16) ** 2 if number % 2 == 0 else 0)
    np.save(path, (8 * np.exp(-away / 20) + 0.5 * generator.standard_normal((3, 32, 32))).astype(np.float32))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The table, what it names, and other files that are new."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rows = ["touch,text"]
    for place, count in (("touched", 16), ("new", 6)):
        (tmp_path / place).mkdir()
        for number in range(count):
            name = f"{place}/{number:03}.npy"
            touched(name, number, generator)
            rows += [f"{name},{('a ball', 'an edge')[number % 2]}"] if place == "touched" else []
    Path("train.csv").write_text("\n".join(rows))
    return tmp_path


def test_a_seventh_sense(folder, monkeypatch, capsys):
    sense, line, training = re.findall(r"^```python\n(.*?)^```", CHAPTER, re.MULTILINE | re.DOTALL)
    table = Path(modalities.__file__).read_text(encoding="utf-8")
    assert line.replace(", Touch)", ")") in table  # the line as it is, and the new sense
    module = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(sense, module.__dict__)
    monkeypatch.setitem(modalities.MODALITIES, "touch", module.Touch)
    exec(training, {})
    capsys.readouterr()
    (commands,) = re.findall(r"^```sh\n(.*?)^```", CHAPTER, re.MULTILINE | re.DOTALL)
    said = []
    for command in commands.splitlines():
        assert main([*shlex.split(command)[1:], "--device", "cpu"]) == 0, command
        said.append(capsys.readouterr().out.splitlines())
    classes, index, by_text, by_touch = said
    right = [("a ball", "an edge")[number % 2] for number in range(6)]
    assert [re.search(r"% (an? \w+)", line)[1] for line in classes] == right
    assert index == ["new.index: 6 embedded, 0 unchanged, 0 forgotten, 0 that cannot be read"]
    for found in (by_text, by_touch):
        assert {line.split()[-1] for line in found[1:4]} == {"000.npy", "002.npy", "004.npy"}


def test_the_commands_and_fields_of_the_document_exist():
    parser = build_parser()
    for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL):
        for command in block.splitlines():
            words = shlex.split(command, comments=True)
            if words[0] != "vitrail":
                continue
            _, rest = parser.parse_known_args(words[1:])
            if words[1] == "train":
                for word in rest:
                    if word.startswith("--"):
                        value = load_recipe(words[2])
                        for part in word.removeprefix("--").replace("-", "_").split("."):
                            value = value[int(part)] if part.isdigit() else getattr(value, part)
                continue
            senses = [word for word in rest if word.startswith("--")]
            assert all(word.removeprefix("--") in (*modalities.MODALITIES, "touch") for word in senses), command
    fields = re.findall(r"^\| (?:`(\w+)` )?\| ((?:`\w+`(?:, )?)+) \|(?= )", DOCUMENT, re.MULTILINE)
    sense = ""
    for name, several in fields:
        sense = name or sense
        for field in re.findall(r"`(\w+)`", several):
            assert field in modalities.MODALITIES[sense].__dataclass_fields__, (sense, field)
    assert len(fields) > 8
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [^|]+ \| [^|]+ \|$", DOCUMENT.split("`--layout`")[1], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(named))) == sorted(LAYOUTS)


def test_the_tower_of_the_document():
    train = DOCUMENT[DOCUMENT.index("## Train") : DOCUMENT.index("## A seventh sense")]
    (block,) = re.findall(r"^```python\n(.*?)^```", train, re.MULTILINE | re.DOTALL)
    made: dict[str, object] = {}
    exec(block, made)
    experiment = made["experiment"]
    find_weights(experiment.weights)
    with torch.device("meta"):
        task = experiment.build_task()
    assert task.tower.config == MODELS["xcit_small_12_p16"]
    learning = [name for name, parameter in task.model.encoders["image"].named_parameters() if parameter.requires_grad]
    assert learning == ["head.weight"]
    recipes = re.findall(r"^\| `(bind_\w+)` \|", train, re.MULTILINE)
    assert [load_recipe(name).pairs[0].first for name in recipes] == ["image"] * 4


def test_settings_in_the_document_are_fields_of_their_senses():
    (block,) = re.findall(r"^settings = (\{.*?^\})", DOCUMENT, re.MULTILINE | re.DOTALL)
    for sense, fields in eval(block).items():
        modalities.MODALITIES[sense](**fields)
