"""The scripts run, small, with every row; what they print are the numbers they wrote."""

import csv
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *options: str) -> str:
    command = [sys.executable, "-W", "error", str(BENCHMARKS / script), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_speed(photos: Path, tmp_path: Path) -> None:
    small = ["--size", "32", "--batch", "2", "--rounds", "1", "--words", "64", "--workers", "0", "--threads", "1"]
    options = ["--data", str(photos / "train"), "--output", str(tmp_path), "--model", "vit_tiny_patch16_224"]
    printed = run("pretrain_speed.py", *small, *options, "--device", "cpu")
    rows = read(tmp_path / "speed.csv")
    masked = ["beit", "beit_dall_e", "splitmask", "splitmask_inpaint", "splitmask_match"]
    assert [row["method"] for row in rows] == [*masked, "dino", "timm_beit", "timm_mae", "timm_dino"]
    assert all(float(row["images/s"]) > 0 and float(row["memory (MB)"]) > 0 for row in rows)
    assert float(rows[0]["times BEiT's"]) == 1
    assert all(0 < float(row["tokenizer (%)"]) < 100 for row in rows[:3])
    assert (tmp_path / "speed.md").read_text() in printed


def test_methods(photos: Path, tmp_path: Path) -> None:
    network = ["--size", "16", "--width", "8", "--depth", "1", "--heads", "1", "--words", "8", "--workers", "0"]
    length = ["--seeds", "2", "--epochs", "0.02", "--tuning-epochs", "0.02", "--batch-size", "4"]
    options = ["--data", str(photos / "train"), "--validation", str(photos / "test"), "--output", str(tmp_path)]
    run("pretrain_methods.py", "--parts", "ablation", "--labels", "1", *network, *length, *options)
    rows = read(tmp_path / "ablation.csv")
    assert [row["pre-training"] for row in rows] == ["BEiT", "split, inpaint", "split, match", "split, inpaint, match"]
    for labels in ("1", "all"):
        figures = [row[f"top-1 (%), {labels} labels a class"].split(" ± ") for row in rows]
        assert all(0 <= float(mean) <= 100 and float(deviation) >= 0 for mean, deviation in figures)
    assert float(rows[0]["step times BEiT's"]) == 1
    assert len(list((tmp_path / "runs").iterdir())) == 4 * 2 * 3
    chosen = read(tmp_path / "labels_1_0.csv")
    assert sorted(row["label"] for row in chosen) == sorted(path.name for path in (photos / "train").iterdir())
    assert all((photos / "train" / row["path"]).is_file() for row in chosen)
