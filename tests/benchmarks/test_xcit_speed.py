"""The script runs, small, with every model; what it prints are the numbers it wrote."""

import csv
import os
import platform
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "xcit_speed.py"


def test_every_model_at_32_pixels(tmp_path: Path) -> None:
    options = ["--model", "xcit_nano_12_p16", "--sizes", "32", "--batch", "2", "--rounds", "2", "--threads", "1"]
    options += ["--forms", "--peers", "ResNet-50"]
    command = [sys.executable, "-W", "error", str(SCRIPT), "--output", str(tmp_path), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    with (tmp_path / "speed.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    kinds = ("timm", "ours", "ours, optimized", "ours, covariance form", "ours, queries and keys")
    assert list(rows) == [*(f"xcit_nano_12_p16 {kind}" for kind in kinds), "ResNet-50"]
    for row in rows.values():
        assert (row["size"], row["batch"], row["dtype"]) == ("32", "2", "float32")
        assert float(row["images_per_second"]) > 0
        assert float(row["times_timm"]) > 0
        assert platform.system() != "Linux" or float(row["memory_mb"]) >= 0
    assert float(rows["xcit_nano_12_p16 timm"]["times_timm"]) == 1
    text = (tmp_path / "speed.md").read_text()
    assert text in run.stdout
    assert f"{float(rows['ResNet-50']['images_per_second']):.3g}" in text
    assert {path.name for path in tmp_path.iterdir()} == {"speed.csv", "speed.md", "speed.png", "memory.png"}
