import re
from dataclasses import replace

import pytest

from vitrail.backbones.xcit import XCiTConfig
from vitrail.demo import recognize as demo
from vitrail.errors import VitrailError
from vitrail.recipes import load_recipe


@pytest.fixture
def tiny(monkeypatch):
    recipe = load_recipe("xcit_demo")
    small = replace(
        recipe,
        backbone=XCiTConfig(width=32, depth=2, heads=4, patch_size=8),
        loop=replace(recipe.loop, steps=2, batch_size=8, log_every=1),
        loader=replace(recipe.loader, workers=0),
    )
    monkeypatch.setattr(demo, "load_recipe", lambda name: small)


def test_the_report_carries_its_pictures_and_states_what_was_measured(tiny, tmp_path, capsys):
    folder = tmp_path / "demo"
    for _ in range(2):  # the second demo takes the place of the first
        assert demo.run_demo(folder) == 0
    out = capsys.readouterr().out
    (accuracy,) = set(re.findall(r"([\d.]+)% of 160 test photos are named correctly \(chance: 10%\)", out))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{accuracy}% of 160 test photos" in page and "on 421 photos" in page
    assert page.count('src="data:image/png;base64,') == 5 and "http" not in page
    pictures = {"curves.png", "confusion.png", "resolutions.png", "attention.png", "norms.png"}
    assert {path.name for path in folder.iterdir()} == {"run", "report.html", *pictures}


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(VitrailError, match="holds something else than an earlier demo; give another one by -o"):
        demo.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_of_ones_own_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"data": {"root": "my/photos"}}')
    with pytest.raises(VitrailError, match="holds something else than an earlier demo"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow  # about a minute and a half
def test_the_demo_learns(tmp_path, capsys):
    assert demo.run_demo(tmp_path / "demo") == 0
    (accuracy,) = re.findall(r"([\d.]+)% of 160 test photos", capsys.readouterr().out)
    assert float(accuracy) > 70
