"""The parts of an index: Parquet files of rows, each the vector of a file, or word that a file is forgotten."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import FileError
from vitrail.tables import load_arrow

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """A row of a part; without a size: the file is forgotten."""

    name: str
    modality: str
    start: float | None = None
    seconds: float | None = None
    size: int | None = None
    modified: int | None = None
    vector: Vectors | None = None


COLUMNS = tuple(field.name for field in fields(Row))


def is_part(name: Any) -> bool:
    """Whether a part may be called so: nothing else is read, or deleted."""
    return isinstance(name, str) and re.fullmatch(r"[0-9]{8,}\.parquet", name) is not None


def cannot_keep(name: str) -> str | None:
    """Why a file's name cannot stand in a table, in a sentence; None: it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"The name {name!a} is not in UTF-8, as tables keep names; rename the file."
    return None


def schema(dimension: int, columns: Sequence[str] = COLUMNS) -> Any:
    """Arrow's, of some of the columns."""
    arrow, _ = load_arrow()
    text, number, time = arrow.string(), arrow.int64(), arrow.float64()
    kinds = (text, text, time, time, number, number, arrow.list_(arrow.float32(), dimension))
    known = dict(zip(COLUMNS, kinds, strict=True))
    return arrow.schema([(name, known[name]) for name in columns])


def read_part(path: Path, dimension: int, columns: Sequence[str] = COLUMNS) -> Any:
    """The rows of a part, a table of Arrow's with some of the columns.

    Raises:
        FileError: it is missing, damaged, or none of an index of this dimension.
    """
    arrow, parquet = load_arrow()
    expected, table = schema(dimension, columns), None
    with suppress(OSError, arrow.ArrowException):
        table = parquet.read_table(path, columns=list(columns))
    if table is None or not table.schema.equals(expected):
        raise FileError(
            f"The index in {path.parent} is damaged: {path.name} is missing, or not what it was; delete the folder and "
            "make the index anew."
        )
    return table


def matrix(table: Any, dimension: int) -> Vectors:
    """The column of vectors, [n, dimension]."""
    vectors = table.column("vector").combine_chunks()
    flat: Vectors = vectors.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(-1, dimension))
