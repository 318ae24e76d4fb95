"""The curves of a run: `metrics.csv` and TensorBoard."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Self, TextIO

from vitrail.errors import FileError
from vitrail.files import write_text

FIELDS = ("step", "name", "value")


class Curves:
    """Writes points of curves; a context manager.

    `metrics.csv` has one row a point (step, name, value). It depends on nothing but the configuration: what a clock
    measures goes to TensorBoard alone.

    Args:
        folder: of the run.
        step: what was written of later steps is dropped; a run that is resumed writes it again.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.csv"
        rows = [row for row in _rows(self._path) if int(row[0]) <= step] if step else []
        write_text(self._path, "".join(f"{','.join(row)}\n" for row in [FIELDS, *rows]))
        self._file: TextIO = self._path.open("a", encoding="utf-8", newline="")
        self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def add(self, step: int, values: dict[str, float], clock: dict[str, float] | None = None) -> None:
        """Adds the points of `step`; those in `clock` to TensorBoard alone."""
        self._file.write("".join(f"{step},{name},{value!r}\n" for name, value in values.items()))
        self._file.flush()
        for name, value in (values | (clock or {})).items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings all points to the disk."""
        os.fsync(self._file.fileno())
        self._board.flush()


def read_curves(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run by name ("train/loss", "validation/top1"): (step, value) in order.

    Raises:
        FileError: the folder holds no run, or damaged curves.
    """
    path = Path(folder) / "metrics.csv"
    if not path.exists():
        raise FileError(f"There are no curves {path}; give the folder of a run.")
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in _rows(path):
        curves.setdefault(name, []).append((int(step), float(value)))
    return curves


def turning_point(curve: Sequence[tuple[int, float]], patience: int = 4) -> int | None:
    """The step of the least value of a curve, (step, value) in order, if the curve has turned upwards after it.

    It has when at least `patience` values have come since, and the later half of these is higher on average than the
    earlier half: single values may fall, as those of few images do. None where it has not turned, or where it has
    turned before: what is to be said once.
    """
    values, least = [value for _, value in curve], 0
    for last, value in enumerate(values):
        if value < values[least]:
            least = last
        since = values[least + 1 : last + 1]
        middle = len(since) // 2
        if len(since) >= patience and fmean(since[-middle:]) > fmean(since[:middle]):
            return curve[least][0] if last == len(values) - 1 else None
    return None


def _rows(path: Path) -> list[list[str]]:
    """The rows that are whole: a run may have been killed while it wrote the last one."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))[1:]
        for step, _, value in rows:
            int(step), float(value)
    except (ValueError, csv.Error):
        raise FileError(f"The curves {path} are damaged; delete the file to go on without its points.") from None
    return rows
