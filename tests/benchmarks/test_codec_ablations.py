"""The script runs, tiny, with all of its parts; what can be known of its numbers holds."""

import csv
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codec_ablations.py"
TINY = ["--steps", "3", "--batch-size", "4", "--crop", "32", "--width", "16", "--depth", "1", "--heads", "2"]
TINY += ["--accelerator", "cpu", "--size", "96"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("codec_ablations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        shutil.copy(photos / "test" / "banana" / f"{number:02}.webp", folder)
    return folder


@pytest.fixture(scope="module")
def trained(script, pictures, tmp_path_factory):
    """The folder of the parts that train."""
    output = tmp_path_factory.mktemp("ablations")
    options = [*TINY, "--most-parts", "2", "--sizes", "16x1", "24x1", "--data", str(pictures)]
    run(script, *options, "--parts", "figure_5.3", "figure_5.8", "nested", "--pictures", str(pictures), output=output)
    return output


def run(script, *options: str, output: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["codec_ablations.py", *options, "--output", str(output)])
        script.main()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_parts_that_train(trained, script):
    vector = rows(trained / "figure_5.3.csv")
    assert [(row["model"], row["sub-vectors"]) for row in vector] == [
        ("PQ and VQ, 1", "1"),
        ("PQ, 2", "2"),
        ("VQ, 2", "1"),
    ]
    assert [float(row["bpp fixed-length"]) for row in vector] == [4 / 256, 8 / 256, 8 / 256]
    # A codebook of 2 x 16 vectors of 8 dimensions against one of 256 of 16, and nothing else.
    assert int(vector[2]["parameters"]) - int(vector[1]["parameters"]) == 256 * 16 - 2 * 16 * 8
    qualities = [(row["model"], row["sub-vectors"]) for row in rows(trained / "nested.csv")]
    assert qualities == [*(("nested", str(m)) for m in (1, 2, 3, 4)), *((f"separate {m}", str(m)) for m in (1, 2, 4))]
    sizes = rows(trained / "figure_5.8.csv")
    assert len(sizes) == 8 and int(sizes[7]["parameters"]) > int(sizes[0]["parameters"])
    for row in (*vector, *sizes):
        assert float(row["PSNR (dB)"]) > 5 and 0 < float(row["usage"]) <= 1 <= float(row["perplexity"])
    table = (trained / "nested.md").read_text().splitlines()
    assert table[0].startswith("| model | sub-vectors |") and len(table) == 2 + 7
    assert {path.name for path in (trained / "runs").iterdir()} >= {
        "PQ,_2",
        "VQ,_2",
        "nested",
        "separate_4",
        "size_24x1",
    }


def test_the_parts_that_take_a_codec(script, trained, pictures, tmp_path, capsys):
    run_folder = trained / "runs" / "nested"
    options = ["--codec", str(run_folder), "--pictures", str(pictures), "--size", "96", "--most", "2"]
    run(script, *options, "--parts", "table_5.2", "figure_5.9", "figure_5.10", output=tmp_path)
    policies = {row["policy"]: row for row in rows(tmp_path / "table_5.2.csv")}
    assert [row["steps"] for row in policies.values()] == ["1", "1536", "5", "1536", ""]
    for name in ("marginal", "raster", "quincunx"):
        estimated, real = (float(policies[name][key]) for key in ("bpp estimated", "bpp of files"))
        assert 0 < real - estimated < 8 * 40 / 96**2  # the header and at most 32 checks
    cost = {name: float(row["multiply-adds a pixel (M)"]) for name, row in policies.items()}
    assert cost["marginal"] == 0 and cost["raster"] == pytest.approx(1536 / 4 * cost["quincunx"])
    # One layer of width 16: 12 d^2 + 2 T d a token, and heads onto 4 x 256 logits; 256 pixels a token, 1536 passes.
    expected = 1536 * (12 * 16**2 + 2 * 1536 * 16 + 16 * 1024) / 256 / 1e6
    assert cost["raster with a ViT (computed)"] == pytest.approx(expected, rel=1e-9)
    # XCiT's: the same projections, attention 2 d^2 / heads, two convolutions of 3 x 3, and 64 waves to d positions.
    a_token = 12 * 16**2 + 2 * 16**2 / 2 + 18 * 16 + 64 * 16 + 16 * 1024
    assert cost["quincunx"] == pytest.approx(4 * a_token / 256 / 1e6, rel=1e-9)
    partitions = rows(tmp_path / "figure_5.9.csv")
    rates = {(row["partition"], int(row["steps"])): float(row["bpp of files"]) for row in partitions}
    assert len(rates) == 3 * 7
    assert rates["quincunx", 5] == pytest.approx(float(policies["quincunx"]["bpp of files"]), rel=1e-12)
    missing = rows(tmp_path / "figure_5.10.csv")
    assert [float(row["missing (%)"]) for row in missing] == [0, 10, 20, 30, 50]
    assert (
        missing[0]["right indices"] == "1.0" and missing[0]["PSNR (dB)"] == missing[0]["PSNR (dB), most frequent index"]
    )
    assert all(0 <= float(row["right indices"]) <= 1 for row in missing)
    assert (tmp_path / "figure_5.10.md").read_text() in capsys.readouterr().out


def test_what_is_missing_is_as_much_as_was_asked_for(script):
    known = script.draw_known((5, 8), 0.3, seed=1)
    assert known.shape == (5, 8) and int((~known).sum()) == 12
    assert torch.equal(known, script.draw_known((5, 8), 0.3, seed=1))
    assert not torch.equal(known, script.draw_known((5, 8), 0.3, seed=2))


def test_parts_ask_for_what_they_need(script, pictures, tmp_path, capsys):
    for part, sentence in (("nested", "need --data"), ("figure_5.9", "need --codec")):
        with pytest.raises(SystemExit):
            run(script, "--parts", part, "--pictures", str(pictures), output=tmp_path)
        assert sentence in capsys.readouterr().err
