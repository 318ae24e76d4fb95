"""The commands and the code of the README run as they stand."""

import io
import re
import shlex
from pathlib import Path

import pytest

from vitrail.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (vitrail .*|find .*)$", README, re.MULTILINE)


@pytest.fixture
def checkout(run, tmp_path, monkeypatch):
    """A folder that looks like this repository after `vitrail demo recognize`, with a run that took two steps."""
    (tmp_path / "src").symlink_to(Path(__file__).parents[1] / "src")
    (tmp_path / "demo" / "recognize").mkdir(parents=True)
    (tmp_path / "demo" / "recognize" / "run").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_in_their_order(checkout, monkeypatch, capsys):
    """Each finds what those before it have left."""
    for command in COMMANDS:
        if command.startswith("find"):
            listed, command = command.split(" | ")
            words = shlex.split(listed)
            paths = sorted(map(str, Path(words[1]).rglob(words[3])))
            monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(paths)))
        words = shlex.split(command)[1:]
        if words[0] == "train":  # the same command, for a test's time
            words += ["--loop.steps", "1", "--loop.batch-size", "2", "--loader.workers", "0"]
            if words[1] == "xcit_folder":
                words += ["--train-transform.size", "32", "--eval-transform.size", "32"]
        assert main(words) == 0, command
        outputs = [words[place + 1] for place, word in enumerate(words) if word in ("-o", "--confusion", "--plot")]
        assert all((checkout / output).exists() for output in outputs), command
        assert capsys.readouterr().out or outputs, command


def test_python(monkeypatch, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    names = {}
    monkeypatch.chdir(Path(__file__).parents[1])
    exec(code, names)
    features = names["features"]
    assert features.patches.shape == (1, 280, 128) and features.grid == (14, 20)
    assert features.class_token.shape == (1, 128)
    assert [tuple(part.shape) for part in features.maps()] == [(1, 128, 14, 20)] * 4
    assert names["picture"].size == names["photo"].size


def test_the_recipes_of_the_readme_exist():
    from vitrail.recipes import recipe_names

    assert set(re.findall(r"\bxcit_(?:folder|imagenet\w*|transfer|grocery)\b", README)) <= set(recipe_names())
