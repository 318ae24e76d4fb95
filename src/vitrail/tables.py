"""Tables: read as CSV or Parquet, written as CSV or Markdown."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path, write_text


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


def is_whole(cell: str) -> bool:
    """Whether a cell is a whole number of up to nine digits, which every kind of integer holds."""
    return cell.isdecimal() and len(cell) < 10


def load_arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        VitrailError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise VitrailError("Tables need pyarrow; install it with: pip install 'vitrail[bind]'") from None
    return pyarrow, pyarrow.parquet


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file; None becomes an empty field."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes `path`.csv and, in Markdown, `path`.md, and gives the text of the latter."""
    text = markdown_table(header, rows)
    write_rows(Path(f"{path}.csv"), header, rows)
    write_text(Path(f"{path}.md"), text)
    return text
