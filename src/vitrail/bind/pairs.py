"""Pairs of files of two senses, from a table, as training samples (Section 6.4.5)."""

import csv
import inspect
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.bind.augmentation import Crop
from vitrail.bind.index import load_arrow
from vitrail.bind.modality import Modality
from vitrail.data.images import image_size
from vitrail.data.paths import PathIndex
from vitrail.errors import FileError, VitrailError


class Pair(NamedTuple):
    """A sample, prepared for the encoders of two senses, or a batch of them, as `default_collate` makes it.

    Attributes:
        first: [...] or [B, ...].
        second: the same of the other sense.
    """

    first: Tensor
    second: Tensor


class PairTable:
    """A data set of pairs: a table (CSV or Parquet) with a column for each of two senses.

    A column holds paths, relative to the table, or for text the texts themselves. Columns `start` and `seconds`, if
    there are any, say which part of the recordings belongs together; cells of them may be empty.

    Samples are aligned by what both senses take in `sample`: a `crop`, which is that of the first picture (for depth
    and heat, Table 6.6f), or a `start` in seconds, of both windows in the part or in the shorter recording (for sound
    and motion, Table 6.6h). Senses that take a `start` have `window`, the seconds of a clip, and `duration(source)`.

    Random numbers come from torch's global generator, which the loader seeds sample by sample.

    Args:
        table: the file.
        first: a sense, as a rule images.
        second: the other.
        columns: of the table; None: the senses' names.
        aligned: False draws crops and starts independently for the ablation; a `start` of the table still counts.
        replication: how often each pair comes in an epoch (Table 6.5); of 1.25, the first quarter comes twice.

    Raises:
        FileError: the table cannot be read, is empty, or lacks a column or a cell.
        VitrailError: `replication` leaves nothing.
    """

    def __init__(
        self,
        table: str | Path,
        first: Modality,
        second: Modality,
        *,
        columns: tuple[str, str] | None = None,
        aligned: bool = True,
        replication: float = 1.0,
    ) -> None:
        self.table = Path(table)
        self.modalities = (first, second)
        self.aligned = aligned
        names = columns or (first.name, second.name)
        found: tuple[list[str], list[str]] = ([], [])
        times = array("d")
        for number, row in enumerate(read_rows(self.table), 1):
            for name, cells in zip(names, found, strict=True):
                if row.get(name) in (None, ""):
                    known = ", ".join(str(key) for key in row)
                    raise FileError(f"Row {number} of {table} has no {name!r} among {known}; give it, or the columns.")
                cells.append(str(row[name]))
            times.extend(_time(row.get(name), name, number, self.table) for name in ("start", "seconds"))
        if not found[0]:
            raise FileError(f"There is no pair in {table}; give a table with a row for each.")
        self._sources = (PathIndex.build(found[0]), PathIndex.build(found[1]))
        self._times = np.frombuffer(times, dtype=np.float64).reshape(-1, 2)
        self._length = round(len(found[0]) * replication)
        if self._length < 1:
            raise VitrailError(f"A replication of {replication:g} leaves nothing of {table}; choose a greater one.")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Pair:
        row, sources = self._row(number), self.sources(number)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        options = self._options(sources, row, generator)
        samples = [
            modality.sample(source, generator, **chosen)
            for modality, source, chosen in zip(self.modalities, sources, options, strict=True)
        ]
        return Pair(*samples)

    def sources(self, number: int) -> tuple[str | Path, str | Path]:
        """The files, or texts, of a sample."""
        row = self._row(number)
        return self._source(row, 0), self._source(row, 1)

    def _row(self, number: int) -> int:
        return range(self._length)[number] % len(self._times)

    def _source(self, row: int, side: int) -> str | Path:
        cell = self._sources[side][row]
        return cell if self.modalities[side].name == "text" else self.table.parent / cell

    def _options(
        self, sources: tuple[str | Path, str | Path], row: int, generator: torch.Generator
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `sample` of each sense is told."""
        first, second = (_parameters(modality) for modality in self.modalities)
        options: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        if self.aligned and "crop" in first & second:
            scales = {"scale": self.modalities[0].scale} if hasattr(self.modalities[0], "scale") else {}
            crop = Crop.random(*image_size(sources[0]), generator, **scales)
            for one in options:
                one["crop"] = crop
        timed = [side for side, known in enumerate((first, second)) if "start" in known]
        begin, seconds = self._times[row]
        if not math.isnan(begin) or (self.aligned and len(timed) == 2):
            begin = 0.0 if math.isnan(begin) else float(begin)
            senses: list[Any] = [self.modalities[side] for side in timed]
            if math.isnan(seconds):
                ends = [sense.duration(sources[side]) for side, sense in zip(timed, senses, strict=True)]
                seconds = min(ends, default=begin) - begin
            together = _within(begin, seconds, max((sense.window for sense in senses), default=0.0), generator)
            for side, sense in zip(timed, senses, strict=True):
                alone = _within(begin, seconds, sense.window, generator)
                options[side]["start"] = together if self.aligned else alone
        return options


def _parameters(modality: Modality) -> frozenset[str]:
    return frozenset(inspect.signature(modality.sample).parameters)


def _within(begin: float, seconds: float, window: float, generator: torch.Generator) -> float:
    """Where a window of a part begins, at random."""
    return begin + max(0.0, float(seconds) - window) * float(torch.rand((), generator=generator))


def _time(cell: Any, name: str, number: int, table: Path) -> float:
    """A cell in seconds, NaN if it is empty."""
    try:
        value = math.nan if cell in (None, "") else float(cell)
    except ValueError:
        value = -1.0
    if value < 0 or math.isinf(value):
        raise FileError(f"Row {number} of {table} has the {name} {cell!r}; it must be seconds, at least 0, or empty.")
    return value


def read_rows(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table (CSV or Parquet), by column.

    Raises:
        FileError: it cannot be read.
    """
    if table.suffix.lower() == ".parquet":
        arrow, parquet = load_arrow()
        try:
            with parquet.ParquetFile(table) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()
        except (OSError, arrow.ArrowException) as error:
            raise FileError(f"Cannot read {table}: {_first_line(error)}; check the file.") from None
        return
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"Cannot read {table}: {_first_line(error)}; give a table in UTF-8 or Parquet.") from None


def _first_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.splitlines()[0].rstrip(".") if reason else type(error).__name__
