"""Figures: matplotlib without a screen, loaded only when something is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import VitrailError
from vitrail.files import atomic_path

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


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a figure in the format that the suffix of `path` names.

    Raises:
        VitrailError: the suffix names no format of pictures, or the file cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            figure.savefig(temporary, dpi=120)
        except ValueError as error:
            raise VitrailError(f"Cannot draw {path}: {error}; use a name that ends in .png.") from None
