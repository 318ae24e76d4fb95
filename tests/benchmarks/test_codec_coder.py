"""The script runs, small; what it decodes is what was encoded, at little above the entropy."""

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codec_coder.py"


def test_few_symbols(tmp_path: Path) -> None:
    options = ["--output", str(tmp_path), "--symbols", "2000", "--centroids", "16", "--rounds", "1"]
    run = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    with (tmp_path / "codec_coder.csv").open() as file:
        ours = next(csv.DictReader(file))
    assert ours["coder"] == "ours" and ours["symbols"] == "2000"
    assert 0 < float(ours["bits a symbol above the entropy"]) < 0.03  # of 32 bits, the check takes 0.016
    assert (tmp_path / "codec_coder.md").read_text() in run.stdout
