"""The house keeps its plan: imports point down, and every file has its test."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "vitrail").rglob("*.py"))


def test_imports_point_down():
    lint = Path(sys.executable).parent / "lint-imports"
    answer = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_file_is_too_long_to_read_at_once(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
