"""Parts of recordings: start and length in seconds."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.data.corrupt import CorruptSample
from vitrail.errors import FileError

Span = tuple[float, float]
"""Start and length of a part of a recording, in seconds."""


def row_span(row: Mapping[str, Any], where: str) -> Span:
    """What a row says in its columns `start` and `seconds`, NaN where they are empty or missing.

    Args:
        row: column -> cell.
        where: the row's place, for messages.

    Raises:
        FileError: a cell is no number of seconds.
    """
    return _seconds(row, "start", where), _seconds(row, "seconds", where)


def _seconds(row: Mapping[str, Any], name: str, where: str) -> float:
    cell = row.get(name)
    try:
        value = math.nan if cell in (None, "") else float(cell)
    except (TypeError, ValueError):
        value = -1.0
    if value < 0 or math.isinf(value):
        raise FileError(f"{where} has the {name} {cell!r}; it must be seconds, at least 0, or empty.")
    return value


def known_span(start: float, seconds: float) -> Span | None:
    """From 0 where no start is said, and to the end where no length is; None: the whole recording.

    Args:
        start, seconds: NaN where they are not said.
    """
    span = 0.0 if math.isnan(start) else float(start), math.inf if math.isnan(seconds) else float(seconds)
    return None if span == (0, math.inf) else span


def check_span(source: str | Path, span: Span, duration: float) -> None:
    """A part must begin before the recording ends.

    Raises:
        CorruptSample: it does not.
    """
    if span[0] >= duration and span[0] > 0:
        raise CorruptSample(source, f"it lasts {duration:g} s, and a part is to begin at {span[0]:g} s")
