"""The script runs, small, and finds no file that differs."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from vitrail.compress.coding.frequencies import MARGIN

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codec_exactness.py"


def test_a_few_files(tmp_path: Path, photos: Path) -> None:
    options = ["--small", "--files", "8", "--photos", str(photos / "test"), "--output", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=900, env=dict(os.environ)
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "codec_exactness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["configuration"] for row in rows[:4]] == ["as encoded", "threads 2", "mkldnn False", "batch 4"]
    assert "capability default" in [row["configuration"] for row in rows]
    assert all(row["files"] == "8" and row["mismatches"] == "0" for row in rows)
    assert all(float(row["largest_deviation"]) < MARGIN / 100 for row in rows)
    assert float(rows[0]["largest_deviation"]) == 0
    text = (tmp_path / "codec_exactness.md").read_text()
    assert text in run.stdout and "float64 takes" in text
