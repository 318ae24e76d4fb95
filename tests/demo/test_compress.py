"""The codec's demo, on the bundled codec and pictures made small."""

import pytest
from PIL import Image

from vitrail.compress import Codec
from vitrail.demo import compress as demo
from vitrail.errors import VitrailError


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Two of the bundled pictures, 96 pixels a side."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("tree", "temple"):
        with Image.open(demo.SCENES / f"{name}.jpg") as picture:
            picture.resize((96, 96)).save(folder / f"{name}.png")
    monkeypatch.setattr(demo, "SCENES", folder)
    return folder


def test_the_report_shows_what_was_written(scenes, tmp_path, capsys):
    folder = tmp_path / "demo"
    for _ in range(2):  # the second demo takes the place of the first
        assert demo.run_demo(folder) == 0
    out = capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    codec = Codec.load()
    qualities = sorted({1, 2, 4, max(codec.qualities)})
    for quality in qualities:
        assert out.count(f"Quality {quality} ") == 2  # once a run
        size = (folder / f"tree.quality_{quality}.vtr").stat().st_size
        assert f"quality {quality}: {size:,} bytes, {8 * size / 96**2:.3f} bits a pixel" in page
    # The files are real: they hold the pictures that are shown.
    shown = Image.open(folder / "temple.quality_1.png")
    made = codec.decompress((folder / "temple.quality_1.vtr").read_bytes())
    assert shown.tobytes() == made.tobytes()
    shown.close()
    text = (folder / "tweet.txt").read_text(encoding="utf-8").strip()
    assert len(text) <= 280 and text in page
    assert codec.decode((folder / "damaged.vtr").read_bytes()).damage is not None
    stages = codec.inspect((folder / f"temple.quality_{qualities[-1]}.vtr").read_bytes()).total_stages
    assert all((folder / f"prefix.stage_{stage}.png").exists() for stage in range(1, stages + 1))
    assert page.count('src="data:image/png;base64,') == 2 * (len(qualities) + 2) + 2 + stages + 1
    assert "http" not in page


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(VitrailError, match="holds something else than an earlier demo; give another one by -o"):
        demo.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
