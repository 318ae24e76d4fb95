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
