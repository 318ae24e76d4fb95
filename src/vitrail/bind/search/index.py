"""An index on disk: what was embedded of which file, and its unit vector.

A folder of Parquet files, the parts, and `index.json`, which says which of them count, and which model made them. Parts
are written once and never changed; the rows of a file, for one sense, are those of the last part that names both. So a
process that is killed at any moment leaves the index as it was before, or after, one of its steps.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from vitrail.bind.search.parts import COLUMNS, Row, Vectors, cannot_keep, is_part, matrix, read_part, schema
from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path, remove_unfinished, write_text
from vitrail.tables import load_arrow

FORMAT = 1
MANIFEST = "index.json"
_MOST_PARTS = 64  # then they are joined

Options = Mapping[str, str | bool]


@dataclass(frozen=True)
class Source:
    """A file that is to be in the index."""

    path: Path
    """Where it is."""
    name: str
    """What the index calls it."""
    modality: str
    """Which sense it belongs to."""


@dataclass(frozen=True)
class Entry:
    """What one vector stands for."""

    name: str
    """The file's."""
    modality: str
    """Its sense."""
    start: float | None
    """Seconds from the file's beginning; None: the whole file."""
    seconds: float | None
    """How long; None: the whole file."""


@dataclass(frozen=True)
class Embedded:
    """A file's vectors."""

    spans: Sequence[tuple[float, float] | None]
    """Start and length of each in seconds; None: the whole file."""
    vectors: Vectors
    """[n, d], of unit length."""


@dataclass(frozen=True)
class Changes:
    """What an update did, in numbers of files."""

    added: int
    """New, or changed since they were embedded."""
    kept: int
    """In the index already, and unchanged."""
    removed: int
    """No longer there."""
    failed: tuple[str, ...]
    """A sentence for each file that could not be embedded; they are tried again the next time."""


class Index:
    """The vectors of many files, made by one model.

    Attributes:
        folder: where it is.
        model: tells apart what made the vectors; two models' vectors must not meet.
        dimension: d.
        source: where the model was when the index was last brought up to date.
        options: how files are embedded, of all alike: name -> value.
        root: the folder whose files are in it; None: nobody said.
        patterns: pattern of names -> sense, where suffixes do not tell which files are of which.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        dimension: int,
        source: str,
        options: Options,
        root: Path | None = None,
        parts: Sequence[str] = (),
        patterns: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.model, self.dimension, self.source, self.options = folder, model, dimension, source, options
        self.root, self._parts, self.patterns = root, list(parts), dict(patterns or {})

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """An index that exists.

        Raises:
            FileError: there is none, or it is damaged or of a later version.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise FileError(f"The index in {folder} is of format {about['format']}, not {FORMAT}; make it anew.")
            parts, options, patterns = about["parts"], about["options"], about.get("patterns", {})
            root = Path(about["root"]) if about.get("root") else None
            made = str(about["model"]), int(about["dimension"]), str(about["source"])
            known = isinstance(parts, list) and all(map(is_part, parts))
            said = all(isinstance(value, str | bool) for value in (*options.values(), *patterns.values()))
            if not known or not said or made[1] < 1:
                raise _damaged(folder)
        except FileNotFoundError:
            raise FileError(f"There is no index in {folder}; make one with: vitrail bind index.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(folder) from None
        return cls(folder, *made, options, root, parts, patterns)

    @classmethod
    def open_or_make(
        cls,
        folder: str | Path,
        model: str,
        dimension: int,
        source: str = "",
        options: Options | None = None,
        root: Path | None = None,
        patterns: Mapping[str, str] | None = None,
    ) -> Self:
        """The index in `folder`, which may be new.

        Args:
            folder: its own.
            model, dimension, source, options: as the attributes.
            root: as the attribute; it takes another one's place only where that is gone, as if it had been moved.
            patterns: as the attribute, in place of those that it had; none: these go on.

        Raises:
            FileError: the folder holds other things, or an index that is damaged.
            VitrailError: it holds another model's vectors, or such as were made by other options, or another folder's.
        """
        options = dict(options or {})
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise FileError(f"{folder} holds other things than an index; choose a new folder for it.")
            return cls(folder, model, dimension, source, options, root and root.resolve(), patterns=patterns)
        index = cls.open(folder)
        index.source = source or index.source
        if index.model != model:
            raise VitrailError(
                f"The index in {folder} was made by {index.model}, whose vectors cannot be compared with those of "
                f"{model}; use that model, or another folder."
            )
        if index.dimension != dimension:
            raise _damaged(folder)
        for name in sorted({**options, **index.options}):
            own, other = (known.get(name, "unset") for known in (index.options, options))
            if own != other:
                raise VitrailError(
                    f"The index in {folder} was made with {name} {own}, not {other}; do it alike, or choose another "
                    "folder."
                )
        if root and index.root and index.root.is_dir() and not index.root.samefile(root):
            raise VitrailError(
                f"The index in {folder} is of the files in {index.root}, and would forget them for those in {root}; "
                "choose another folder for an index of these."
            )
        index.root = root.resolve() if root else index.root
        index.patterns = dict(patterns or index.patterns)
        return index

    def update(
        self,
        sources: Iterable[Source],
        embed: Callable[[Sequence[Source]], Sequence[Embedded | VitrailError]],
        every: int = 256,
        prune: bool = True,
        done: Callable[[int], None] = lambda files: None,
    ) -> Changes:
        """Embeds what is new or changed, and forgets what has changed into something that cannot be embedded.

        Args:
            sources: of different names, or senses: a video's pictures and its sound have one name.
            embed: files to vectors, or to what is wrong with them.
            every: files that are embedded before what was made is safe on the disk.
            prune: forget the files that are not among `sources`.
            done: called with the number of files that have been seen to.

        Raises:
            VitrailError: another process is at work on the index, or it cannot be written.
        """
        added, kept, failed, seen = 0, 0, [], set[tuple[str, str]]()
        with self._alone():
            stamps = self._stamps()
            for few in _batches(sources, every):
                stale = []
                for source in few:
                    seen.add((source.name, source.modality))
                    stamp = _changed(source, stamps)
                    if sentence := cannot_keep(source.name):
                        failed.append(sentence)
                    elif stamp is None:
                        kept += 1
                    else:
                        stale.append((source, stamp))
                made = embed([source for source, _ in stale]) if stale else []
                rows: list[Row] = []
                for (source, stamp), result in zip(stale, made, strict=True):
                    if isinstance(result, VitrailError):
                        failed.append(str(result))
                        if (source.name, source.modality) in stamps:  # what was embedded of it is no longer in it
                            rows.append(Row(source.name, source.modality))
                    else:
                        rows += _rows(source, stamp, result)
                        added += 1
                self._append(rows)
                done(len(few))
            gone = [key for key in stamps if key not in seen] if prune else []
            self._append([Row(*key) for key in gone])
            self._record()
            if len(self._parts) > _MOST_PARTS:
                self._join()
        return Changes(added, kept, len(gone), tuple(failed))

    def stale(self, sources: Iterable[Source]) -> list[Source]:
        """Those that an update would embed: new, or changed since they were embedded."""
        stamps = self._stamps()
        kept = [source for source in sources if not cannot_keep(source.name)]
        return [source for source in kept if _changed(source, stamps) is not None]

    def read(self) -> tuple[list[Entry], Vectors]:
        """What is in the index, by name and time, and the vectors [n, d].

        Raises:
            FileError: a part is missing or damaged.
        """
        table = self._table()
        columns = [table.column(name).to_pylist() for name in ("name", "modality", "start", "seconds")]
        return [Entry(*values) for values in zip(*columns, strict=True)], matrix(table, self.dimension)

    @property
    def version(self) -> str:
        """Another one after every change."""
        return Path(self._parts[-1]).stem if self._parts else "empty"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=0):
                if (self.folder / MANIFEST).exists():  # it may have changed since it was opened
                    self._parts = type(self).open(self.folder)._parts
                remove_unfinished(self.folder)
                for path in self.folder.glob("*.parquet"):
                    if is_part(path.name) and path.name not in self._parts:  # of a process that was killed
                        path.unlink()
                yield
        except Timeout:
            raise VitrailError(f"Another process is at work on the index in {self.folder}; wait for it.") from None
        except OSError as error:
            raise FileError(f"Cannot write to {self.folder}: {error.strerror}; choose another folder.") from None

    def _stamps(self) -> dict[tuple[str, str], "_Stamp"]:
        """Of each file's each sense in the index: how the file was when it was embedded."""
        table = self._table(COLUMNS[:-1])
        columns = [table.column(name).to_pylist() for name in ("name", "modality", "size", "modified")]
        return {(name, sense): (size, time) for name, sense, size, time in zip(*columns, strict=True)}

    def _table(self, columns: Sequence[str] = COLUMNS) -> Any:
        """The rows that count, by name and time; all of their columns, or some."""
        arrow, _ = load_arrow()
        tables = [read_part(self.folder / name, self.dimension, columns) for name in self._parts]
        table = arrow.concat_tables(tables or [schema(self.dimension).empty_table()])
        part = np.repeat(np.arange(len(tables)), [len(table) for table in tables]).astype(np.int64)
        names, senses = (table.column(name).combine_chunks().dictionary_encode() for name in ("name", "modality"))
        owners = names.indices.to_numpy().astype(np.int64) * max(len(senses.dictionary), 1) + senses.indices.to_numpy()
        _, owners = np.unique(owners, return_inverse=True)
        latest = np.zeros(len(table), dtype=np.int64)
        np.maximum.at(latest, owners, part)
        known = table.column("size").is_valid().to_numpy()
        table = table.filter(arrow.array(known & (part == latest[owners])))
        return table.sort_by([(name, "ascending") for name in ("name", "modality", "start")])

    def _append(self, rows: Sequence[Row]) -> None:
        """One more part; the index has the rows once the manifest names it."""
        if rows or not self._parts:
            arrow, _ = load_arrow()
            columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
            self._publish(arrow.table(columns, schema=schema(self.dimension)), self._parts)

    def _join(self) -> None:
        """All parts in one; the old ones go once the manifest names it alone."""
        old = self._parts
        self._publish(self._table(), [])
        for name in old:
            (self.folder / name).unlink(missing_ok=True)

    def _publish(self, table: Any, beside: Sequence[str]) -> None:
        number = 1 + int(self.version) if self._parts else 1
        name = f"{number:08}.parquet"
        with atomic_path(self.folder / name) as temporary:
            load_arrow()[1].write_table(table, temporary)
        self._parts = [*beside, name]
        self._record()

    def _record(self) -> None:
        """The manifest, unless it says all this already."""
        about = {
            "format": FORMAT,
            "model": self.model,
            "dimension": self.dimension,
            "source": self.source,
            "options": self.options,
            "root": self.root and str(self.root),
            "patterns": self.patterns,
            "parts": self._parts,
        }
        path, text = self.folder / MANIFEST, json.dumps(about, indent=2) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


_Stamp = tuple[int, int]  # size in bytes and time of the last change in nanoseconds
_UNKNOWN: _Stamp = (-1, -1)


def _damaged(folder: Path) -> FileError:
    return FileError(f"{folder / MANIFEST} is damaged; delete {folder} and make the index anew.")


def _rows(source: Source, stamp: _Stamp, made: Embedded) -> list[Row]:
    rows = []
    for span, vector in zip(made.spans, made.vectors, strict=True):
        start, seconds = span or (None, None)
        rows.append(Row(source.name, source.modality, start, seconds, *stamp, vector))
    return rows


def _changed(source: Source, stamps: Mapping[tuple[str, str], _Stamp]) -> _Stamp | None:
    """How a file is now; None: as it was when it was embedded."""
    try:
        status = source.path.stat()
    except OSError:
        return _UNKNOWN  # whoever embeds it will say why
    stamp = status.st_size, status.st_mtime_ns
    return None if stamps.get((source.name, source.modality)) == stamp else stamp


def _batches(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    rest = iter(sources)
    while few := list(islice(rest, size)):
        yield few


def write_vectors(path: str | Path, entries: Sequence[Entry], vectors: Vectors) -> None:
    """A Parquet file of vectors [n, d] and what they stand for: columns name, modality, start, seconds, vector."""
    arrow, parquet = load_arrow()
    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in entries] for name in COLUMNS[:4]}
    columns["vector"] = list(vectors)
    with atomic_path(path) as temporary:
        parquet.write_table(arrow.table(columns, schema=schema(vectors.shape[1], list(columns))), temporary)
