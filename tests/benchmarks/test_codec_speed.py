"""The script runs, small, with every codec; what it prints are the numbers it wrote."""

import csv
import os
import platform
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codec_speed.py"


def test_every_codec_at_two_sizes(tmp_path: Path) -> None:
    options = ["--small", "--sizes", "48x32", "96x64", "--rounds", "1", "--threads", "1"]
    options += ["--entries", "ours", "hyperprior", "autoregressive", "jpeg", "webp"]
    command = [sys.executable, "-W", "error", str(SCRIPT), "--output", str(tmp_path), *options]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "codec_speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    codecs = ["ours", "hyperprior", "autoregressive", "jpeg", "webp"]
    assert [(row["codec"], row["width"]) for row in rows] == [(c, w) for w in ("48", "96") for c in codecs]
    for row in rows:
        assert float(row["encode"]) > 0 and float(row["decode"]) > 0 and int(row["file_bytes"]) > 0
        assert platform.system() != "Linux" or float(row["peak_mb"]) > 10
        for step in ("encode", "decode"):
            parts = [row[f"{step}_{part}"] for part in ("network", "prior", "coder")]
            if row["codec"] in ("jpeg", "webp"):
                assert parts == ["", "", ""]
            else:
                assert all(float(part) > 0 for part in parts)
                assert sum(map(float, parts)) <= float(row[step])
        assert row["codec"] != "ours" or float(row["times_ours_encode"]) == float(row["times_ours_decode"]) == 1
    text = (tmp_path / "codec_speed.md").read_text()
    assert text in run.stdout and "48 x 32 pixels" in text and f"{float(rows[-1]['decode']):.3g}" in text
    assert {path.name for path in tmp_path.iterdir()} == {"codec_speed.csv", "codec_speed.md", "codec_speed.png"}
