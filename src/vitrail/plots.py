"""Figures: matplotlib without a screen, loaded only when something is drawn."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path, check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` x `height` inches.

    Raises:
        VitrailError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise VitrailError("Drawing needs matplotlib; install it with: pip install 'vitrail[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def check_figure(path: str | Path) -> None:
    """Tells whether a figure can be written to `path`, before anything is computed for it.

    Raises:
        VitrailError: as of `save_figure`, or matplotlib is not installed.
    """
    _check_format(path)
    check_writable(path)


def _check_format(path: str | Path) -> None:
    formats = new_figure(1, 1).canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise VitrailError(f"Cannot draw {path}: its suffix names no format; use a name that ends in .png.")


def plain(text: str) -> str:
    """`text` as a figure shows it: no formulas between dollar signs, no bytes of names that are not UTF-8."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a figure in the format that the suffix of `path` names.

    Raises:
        VitrailError: the suffix names no format of pictures, or the file cannot be written.
    """
    _check_format(path)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box stands for it
        try:
            figure.savefig(temporary, dpi=120)
        except (ValueError, RuntimeError) as error:  # a format that holds no such size, or wants a program
            reason = str(error).splitlines()[0].rstrip(".")
            raise FileError(f"Cannot draw {path} ({reason}); use a name that ends in .png.") from None
