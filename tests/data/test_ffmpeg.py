import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitrail.data.ffmpeg import load_av, open_container
from vitrail.errors import VitrailError


@pytest.mark.parametrize(("version", "options"), [("18.1.0", {"metadata_errors": "replace"}), ("19.0.2", {})])
def test_titles_of_any_encoding_in_each_version(version, options):
    """The version that is installed reads a real file in test_video.py."""
    package = SimpleNamespace(__version__=version, open=lambda path, **given: (path, given))
    assert open_container(package, Path("a.mkv")) == ("a.mkv", options)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VitrailError, match=r"Video is read with av, which is missing; pip install 'vitrail\[bind\]'"):
        load_av("Video")
