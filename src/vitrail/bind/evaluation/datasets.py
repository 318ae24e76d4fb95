"""Labelled or captioned files to evaluate a model on: class folders, and tables (Section 6.4.6).

Data sets in the layouts that they were published in are opened by `vitrail.bind.evaluation.layouts`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitrail.bind.modalities import MODALITIES
from vitrail.bind.search.bulk import modality_of, sort_files
from vitrail.bind.settings import parse_setting
from vitrail.bind.spans import Span, known_span, row_span
from vitrail.data.images import natural_key
from vitrail.data.labels import LabelEncoder
from vitrail.errors import FileError, VitrailError
from vitrail.tables import read_rows

Classes = Mapping[str, tuple[str, ...]]
"""Class -> the names that it goes by, as `vitrail.bind.prompts.parse_classes` gives them."""

TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class Item:
    """A file, or a part of it, and what is known of it."""

    path: Path
    """The file."""
    labels: tuple[str, ...] = ()
    """Its classes."""
    matches: tuple[str | Path, ...] = ()
    """What belongs to it: captions, or files of another sense."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom in pixels, the latter two excluded, of the part that counts; None: all of it."""
    span: Span | None = None
    """Of a recording, the part that counts, and of the matches if they are files; None: all of it."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Sense -> fields that hold for this file, such as the sensor of a depth map."""
    fold: str | None = None
    """Of cross-validation."""


@dataclass(frozen=True)
class EvaluationSet:
    """Files of one sense, labelled for classification or matched for retrieval."""

    items: tuple[Item, ...]
    """In order."""
    sense: str
    """Of the files."""
    classes: Classes | None = None
    """Of the labels, in order; None: the files have matches instead."""
    partner: str = "text"
    """The sense of the matches."""

    @property
    def multi_label(self) -> bool:
        """Whether a file has several classes, or none."""
        return any(len(item.labels) != 1 for item in self.items)


def open_data(path: str | Path, sense: str | None = None, classes: Classes | None = None) -> EvaluationSet:
    """Class folders or a table, whichever `path` is.

    Args:
        path: a folder, or a file in CSV or Parquet.
        sense: of the files, and of a table's column where one is called so; None: as their suffixes tell.
        classes: names of the classes; None: they are called as folders or labels are.

    Raises:
        FileError: there is no such folder or table, or it is none.
        VitrailError: the sense is unclear, or a label is of no class.
    """
    path = Path(path)
    if path.is_dir():
        return class_folders(path, sense, classes)
    if not path.exists() or path.suffix.lower() not in TABLES:
        raise FileError(f"{path} is neither a folder nor a table; give class folders, a .csv or a .parquet.")
    return open_table(path, sense, classes)


def class_folders(root: Path, sense: str | None = None, classes: Classes | None = None) -> EvaluationSet:
    """`root/<class>/...`, files at any depth; classes in natural order, called as folders are with spaces for "_".

    With `classes` given, folders are named, or numbered from 0, as these are.

    Raises:
        FileError, VitrailError: as `open_data`.
    """
    found = [source for source in sort_files(root, {"*": sense} if sense else None)[0] if "/" in source.name]
    if not found:
        raise FileError(f"There is no class folder with files of a known sense in {root}; give {root}/CLASS/FILES.")
    sense = _only({source.modality for source in found}, root)
    items = [Item(source.path, (source.name.split("/")[0],)) for source in found]
    return labelled(items, sense, classes, root)


def open_table(table: Path, sense: str | None = None, classes: Classes | None = None) -> EvaluationSet:
    """A table of files, relative to it.

    The files stand in a column `file`, `path`, or called as their sense is. Then there is a column `label`, of several
    classes with "|" between them; or `caption`, or several that begin so (`caption_1`, ...); or another column called
    as a sense, of the texts or files that belong together. A file may stand in several rows, and `fold` beside.

    Columns `start` and `seconds` say which part of the recordings counts; parts of a file are items of their own.
    Columns such as `depth.sensor` say fields of the files' sense that hold for the row. Their cells may be empty.

    Raises:
        FileError, VitrailError: as `open_data`; a column or a cell is missing.
    """
    rows = list(read_rows(table))
    if not rows:
        raise FileError(f"There is no row in {table}; give one for each file.")
    columns = [name for name in rows[0] if name]
    senses = [name for name in columns if name in MODALITIES]
    labels = [name for name in columns if name in ("label", "labels")]
    captions = [name for name in columns if name.startswith("caption")]
    files = [name for name in columns if name in ("file", "path")]
    files = files or sorted(senses, key=lambda name: (name == "text", name != sense))
    matches = captions or [name for name in senses if name != files[0]]
    if not files or not (labels or matches):
        raise FileError(
            f"{table} has the columns {', '.join(columns)}; it must have `file`, or a sense, and `label`, `caption` or "
            "a second sense."
        )
    for number, row in enumerate(rows, 1):
        if row.get(files[0]) in (None, ""):
            raise FileError(f"Row {number} of {table} has no {files[0]!r}; fill it in or leave the row out.")
    if sense is None:
        told = {modality_of(str(row[files[0]])) for row in rows}
        sense = files[0] if files[0] in MODALITIES else _only(told, table)
    partner = "text" if captions else next(iter(matches), "text")
    gathered: dict[tuple[str, Span | None], Item] = {}
    for number, row in enumerate(rows, 1):
        item = _item(row, table, files[0], {sense, partner}, f"Row {number} of {table}")
        said = [str(row[column]) for column in labels[:1] if row.get(column) is not None]
        own = [label.strip() for cell in said for label in cell.split("|") if label.strip()]
        cells = [str(row[column]) for column in matches if row.get(column) not in (None, "")]
        belongs = [cell if partner == "text" else table.parent / cell for cell in cells]
        item = gathered.setdefault((str(item.path), item.span), item)
        gathered[str(item.path), item.span] = replace(
            item, labels=_once(*item.labels, *own), matches=_once(*item.matches, *belongs)
        )
    items = tuple(gathered.values())
    if labels:
        return labelled(items, sense, classes, table)
    return EvaluationSet(items, sense, partner=partner)


def _item(row: Mapping[str, Any], table: Path, column: str, senses: Iterable[str], where: str) -> Item:
    """A row without its labels and matches."""
    settings: dict[str, dict[str, Any]] = {}
    try:
        for name, cell in row.items():
            sense, dot, setting = str(name).partition(".")
            if dot and sense in senses and cell not in (None, ""):
                settings.setdefault(sense, {})[setting] = parse_setting(MODALITIES[sense], setting, str(cell))
    except VitrailError as error:
        raise FileError(f"{where} has a setting that cannot be: {error}") from None
    fold = None if row.get("fold") in (None, "") else str(row["fold"])
    span = known_span(*row_span(row, where))
    return Item(table.parent / str(row[column]), span=span, settings=settings, fold=fold)


def _once(*values: Any) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def labelled(items: Iterable[Item], sense: str, classes: Classes | None, source: Path) -> EvaluationSet:
    """Files of the classes that their labels name, or number from 0.

    Args:
        items: with labels.
        sense: of them.
        classes: names of the classes; None: those of the labels, with spaces for "_".
        source: what errors say they come from.

    Raises:
        FileError: a label is of no class, or there is none.
    """
    items, encoder = list(items), LabelEncoder()
    for item in items:
        for label in item.labels:
            encoder.add(label)
    if not encoder.values:
        raise FileError(f"There is no label in {source}; give at least one file of a class.")
    titles: Sequence[str] = list(classes) if classes else sorted(encoder.values, key=natural_key)
    numbers = iter(encoder.encode(titles, source)[0].tolist())
    known = tuple(replace(item, labels=tuple(titles[next(numbers)] for _ in item.labels)) for item in items)
    return EvaluationSet(known, sense, classes or {title: (title.replace("_", " "),) for title in titles})


def _only(senses: set[str | None] | set[str], source: Path) -> str:
    found = sorted(map(str, senses - {None}))
    if len(found) != 1:
        told = f"files of {', '.join(found)}" if found else "files whose suffixes tell no sense"
        raise VitrailError(f"There are {told} in {source}; say by --sense which one is meant.")
    return found[0]
