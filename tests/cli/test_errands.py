import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from vitrail.cli.errands import plan
from vitrail.errors import VitrailError


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Plans with the files a.png, a.jpg, b.vtr and sub/ in the folder where it works."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg", "b.vtr"):
        Path(name).write_bytes(b"precious")
    Path("sub").mkdir()
    Path("link").symlink_to(".")

    def build(*inputs, output=None, force=False):
        return plan(Namespace(inputs=inputs, output=output, force=force), lambda folder: [], ".vtr")

    return build


@pytest.mark.parametrize("spelled", ["a.jpg", "sub/../a.jpg", "link/a.jpg", "{here}/a.jpg"])
def test_two_inputs_never_go_to_one_file(spelled, planned, tmp_path):
    other = spelled.format(here=tmp_path)
    with pytest.raises(VitrailError) as caught:
        planned("a.png", other, force=True)
    target = Path(other).with_suffix(".vtr")
    assert str(caught.value) == f"a.png and {other} would both be written to {target}; do them apart, with -o."
    with pytest.raises(VitrailError, match=r"a.png and .*a.jpg would both be written to out/a.vtr"):
        planned("a.png", other, output="out")
    assert [str(errand.target) for errand in planned("a.png", "sub/../b.vtr", output="out")] == [
        "out/a.vtr",
        "out/b.vtr",
    ]


def test_no_input_is_written_over_by_another(planned):
    Path("b.png").write_bytes(b"precious, too")
    with pytest.raises(VitrailError) as caught:
        planned("b.png", "link/b.vtr", force=True)
    assert str(caught.value) == "b.png would be written over the input link/b.vtr; name an output folder by -o."


SLOW = """
import os, sys, time
from vitrail.cli.errands import Errand, Outcome, outcomes

def take_tool():
    return None

def work(tool, errand):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with outcomes([Errand(None, None)] * 2, work, take_tool, jobs=2) as results:
        list(results)
"""


@pytest.mark.parametrize("kill", [subprocess.Popen.kill, subprocess.Popen.terminate], ids=["kill", "terminate"])
def test_workers_end_with_the_process_that_started_them(kill, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    # Workers write to the same pipe, which ends when the last of them has.
    with subprocess.Popen([sys.executable, tmp_path / "slow.py"], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        kill(parent)
        rest, _ = parent.communicate(timeout=60)
    assert not rest and len({parent.pid, *workers}) == 3
