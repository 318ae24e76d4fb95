"""Rows of pairs: of a table that names files, or of tars that hold them."""

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitrail.bind.modality import Modality
from vitrail.bind.settings import with_settings
from vitrail.bind.spans import row_span
from vitrail.data.corrupt import CorruptSample
from vitrail.data.paths import PathIndex
from vitrail.data.shards import Member, find_shards, read_members, read_span
from vitrail.errors import FileError, VitrailError
from vitrail.tables import read_rows

Senses = tuple[Modality, Modality]
Sources = tuple[str | Path, str | Path]


class Rows(Protocol):
    """Pairs of sources, each with the part of the recordings that belongs together."""

    times: np.ndarray
    """[n, 2] float64: start and length in seconds, NaN where nothing is said."""
    settings: "Settings"
    """Of the senses, where rows say them."""

    def opened(self, number: int) -> Any:
        """A context in which the sources of a row, files or texts, can be read; its value is both."""
        ...


class Settings:
    """Fields of the senses that hold for a row alone, from columns such as `depth.focal_length`; few differ.

    Args:
        senses: with the fields that hold where a row says nothing.
    """

    def __init__(self, senses: Senses) -> None:
        self.senses = senses
        self._known: dict[tuple[tuple[str, str], ...], int] = {}
        self._different: list[Senses] = []
        self._numbers = array("i")

    def add(self, row: Mapping[str, Any], where: str) -> None:
        """Those of the next row.

        Raises:
            FileError: a sense has no such field, or it cannot have such a value.
        """
        ours = tuple(f"{sense.name}." for sense in self.senses)
        said = tuple(
            (name, str(cell)) for name, cell in row.items() if str(name).startswith(ours) and cell not in (None, "")
        )
        if said not in self._known:
            try:
                first, second = (with_settings(sense, _of(sense, said)) for sense in self.senses)
            except VitrailError as error:
                raise FileError(f"{where} has a setting that cannot be: {error}") from None
            self._known[said] = len(self._different)
            self._different.append((first, second))
        self._numbers.append(self._known[said])

    def __getitem__(self, number: int) -> Senses:
        """The senses as a row wants them."""
        return self._different[self._numbers[number]]


def _of(sense: Modality, said: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Those of the columns `depth.sensor` and so on that are the sense's, by field."""
    return {column.partition(".")[2]: cell for column, cell in said if column.partition(".")[0] == sense.name}


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
        self.settings = Settings(senses)
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
            times.extend(row_span(row, where))
            self.settings.add(row, where)
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
    that files of the sense have. A `.json` may hold `start`, `seconds` and settings, as columns of a table. Headers are
    read once, when this is made; of a sample, the members that are asked for are read, and lie in temporary files as
    long as that takes.

    Args:
        pattern: as in `find_shards`.
        senses: of the two members.
        columns: their suffixes, which may be the same; None: as said above.

    Raises:
        FileError: a tar is missing or damaged, there is no sample, or one lacks a member or has several.
    """

    def __init__(self, pattern: Path, senses: Senses, columns: tuple[str, str] | None) -> None:
        self.senses = senses
        self.settings = Settings(senses)
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
                fields = _fields(shard, members)
                times.extend(row_span(fields, where))
                self.settings.add(fields, where)
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
        try:
            data = read_span(self.shards[place], offset, size)
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
            try:
                fields = json.loads(read_span(shard, member.offset, member.size))
            except ValueError as error:
                raise FileError(f"Cannot read {shard}/{member.name}: {error}; mend the JSON.") from None
            return fields if isinstance(fields, dict) else {}
    return {}
