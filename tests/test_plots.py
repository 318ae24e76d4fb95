"""Figures as files."""

import pytest

from vitrail.errors import FileError
from vitrail.plots import new_figure, save_figure


def test_a_format_that_cannot_hold_a_figure_says_so(tmp_path):
    with pytest.raises(FileError, match=r"^Cannot draw .*wide.webp \(.*16383.*\); use a name that ends in .png\.$"):
        save_figure(new_figure(140, 1), tmp_path / "wide.webp")
    assert not list(tmp_path.iterdir())
    save_figure(new_figure(140, 1), tmp_path / "wide.png")
