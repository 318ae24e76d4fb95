"""Rows of pairs: of a table that names files, or of tars that hold them."""

import csv
import json
import math
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitrail.bind.index import load_arrow
from vitrail.bind.modality import Modality
from vitrail.data.corrupt import CorruptSample
from vitrail.data.paths import PathIndex
from vitrail.data.shards import Member, find_shards, read_members
from vitrail.errors import FileError

Senses = tuple[Modality, Modality]
Sources = tuple[str | Path, str | Path]


class Rows(Protocol):
    """Pairs of sources, each with the part of the recordings that belongs together."""

    times: np.ndarray
    """[n, 2] float64: start and length in seconds, NaN where nothing is said."""

    def opened(self, number: int) -> Any:
        """A context in which the sources of a row, files or texts, can be read; its value is both."""
        ...


class TableRows:
    """The rows of a CSV or Parquet table, whose paths are relative to it.

    Args:
        table: the file.
        senses: of the two columns.
        columns: their names; None: the senses'.

    Raises:
        FileError: the table cannot be read, is empty, or lacks a column or a cell.
    """

    def __init__(self, table: Path, senses: Senses, columns: tuple[str, str] | None) -> None:
        self.table = table
        self.senses = senses
        names = columns or (senses[0].name, senses[1].name)
        found: tuple[list[str], list[str]] = ([], [])
        times = array("d")
        for number, row in enumerate(read_rows(table), 1):
            where = f"Row {number} of {table}"
            for name, cells in zip(names, found, strict=True):
                if row.get(name) in (None, ""):
                    known = ", ".join(str(key) for key in row)
                    raise FileError(f"{where} has no {name!r} among {known}; give it, or the columns.")
                cells.append(str(row[name]))
            times.extend(_times(row, where))
        if not found[0]:
            raise FileError(f"There is no pair in {table}; give a table with a row for each.")
        self.times = np.frombuffer(times, dtype=np.float64).reshape(-1, 2)
        self._cells = (PathIndex.build(found[0]), PathIndex.build(found[1]))

    @contextmanager
    def opened(self, number: int) -> Iterator[Sources]:
        """The files, or texts, of a row."""
        yield self._source(number, 0), self._source(number, 1)

    def _source(self, number: int, side: int) -> str | Path:
        cell = self._cells[side][number]
        return cell if self.senses[side].name == "text" else self.table.parent / cell


class TarRows:
    """The samples of tars as WebDataset writes them: `000.jpg`, `000.flac`, `000.json`, one after the other.

    A member is of a sense if its suffix is the sense's name or begins with it (`000.depth.png`), or else if it is one
    that files of the sense have. A `.json` may hold `start` and `seconds`. Headers are read once, when this is made; of
    a sample, the members that are asked for are read, and lie in temporary files as long as that takes.

    Args:
        pattern: as in `find_shards`.
        senses: of the two members.
        columns: their suffixes, which may be the same; None: as said above.

    Raises:
        FileError: a tar is missing or damaged, there is no sample, or one lacks a member or has several.
    """

    def __init__(self, pattern: Path, senses: Senses, columns: tuple[str, str] | None) -> None:
        self.senses = senses
        self.shards = find_shards(pattern)
        names: tuple[list[str], list[str]] = ([], [])
        places, times = array("q"), array("d")
        for place, shard in enumerate(self.shards):
            for key, group in groupby(read_members(shard), key=attrgetter("key")):
                members, where = list(group), f"The sample {key} of {shard}"
                chosen = [
                    _choose(members, sense, columns[side] if columns else None, where)
                    for side, sense in enumerate(senses)
                ]
                for side, member in enumerate(chosen):
                    names[side].append(member.name)
                    places.extend((place, member.offset, member.size))
                times.extend(_times(_fields(shard, members), where))
        if not names[0]:
            raise FileError(f"There is no pair in {pattern}; give tars with a sample for each.")
        self.times = np.frombuffer(times, dtype=np.float64).reshape(-1, 2)
        self._names = (PathIndex.build(names[0]), PathIndex.build(names[1]))
        self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, 2, 3)

    @contextmanager
    def opened(self, number: int) -> Iterator[Sources]:
        """Temporary files, and texts, of a sample; errors of the files name the members."""
        with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
            sources = (self._source(number, 0, Path(folder)), self._source(number, 1, Path(folder)))
            try:
                yield sources
            except CorruptSample as error:
                for side, source in enumerate(sources):
                    if error.path == str(source):
                        raise CorruptSample(self._name(number, side), error.reason) from None
                raise

    def _name(self, number: int, side: int) -> str:
        return f"{self.shards[self._places[number, side, 0]]}/{self._names[side][number]}"

    def _source(self, number: int, side: int, folder: Path) -> str | Path:
        place, offset, size = (int(value) for value in self._places[number, side])
        name = self._name(number, side)
        # Opened anew for each sample: a handle kept open would be shared, with its position, by forked workers.
        try:
            with self.shards[place].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise CorruptSample(name, error.strerror or str(error)) from None
        if self.senses[side].name == "text":
            try:
                return data.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise CorruptSample(name, "it is not text in UTF-8") from None
        path = folder / f"{side}_{Path(name).name}"
        path.write_bytes(data)
        return path


def _choose(members: Sequence[Member], sense: Modality, column: str | None, where: str) -> Member:
    """The member that is of a sense."""
    wanted = column or sense.name
    found = [member for member in members if member.suffix == wanted or member.suffix.startswith(f"{wanted}.")]
    if not found and column is None:
        found = [member for member in members if f".{member.suffix}" in sense.suffixes]
    if len(found) != 1:
        among = ", ".join(member.suffix for member in members)
        several = "several members" if found else "no member"
        raise FileError(f"{where} has {several} of {wanted!r} among {among}; name the suffixes as columns.")
    return found[0]


def _fields(shard: Path, members: Sequence[Member]) -> dict[str, Any]:
    """What the .json of a sample holds."""
    for member in members:
        if member.suffix == "json":
            with shard.open("rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
            try:
                fields = json.loads(data)
            except ValueError as error:
                raise FileError(f"Cannot read {shard}/{member.name}: {error}; mend the JSON.") from None
            return fields if isinstance(fields, dict) else {}
    return {}


def _times(row: dict[str, Any], where: str) -> Iterator[float]:
    """`start` and `seconds`, NaN if they are empty."""
    for name in ("start", "seconds"):
        cell = row.get(name)
        try:
            value = math.nan if cell in (None, "") else float(cell)
        except (TypeError, ValueError):
            value = -1.0
        if value < 0 or math.isinf(value):
            raise FileError(f"{where} has the {name} {cell!r}; it must be seconds, at least 0, or empty.")
        yield value


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
