"""Labels as files write them, numbers or names, to integers; the names of classes."""

import csv
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.data.images import natural_key
from vitrail.errors import FileError

NO_LABEL = -1

MOST_CLASSES = 1_000_000
"""Labels that are numbers count from 0: with a larger one, a column of something else has been read."""


class LabelEncoder:
    """Gathers labels as text, one a sample, and gives each class its number.

    Attributes:
        codes: for each sample the position of its label in `values`, NO_LABEL where it has none.
        values: label -> its position, in the order of appearance.
    """

    def __init__(self) -> None:
        self.codes = array("i")
        self.values: dict[str, int] = {}

    def add(self, label: str | None) -> None:
        """Adds the label of one more sample."""
        code = NO_LABEL if label is None else self.values.setdefault(label, len(self.values))
        self.codes.append(code)

    def encode(self, classes: Sequence[str] | None, source: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels as integers, and the names of the classes.

        With `classes` given, a label is the name of a class or, failing that, its number. Without, labels that are all
        numbers stay what they are and are their own names; others are numbered in natural order.

        Args:
            classes: the names of the classes by number.
            source: what errors say the labels come from.

        Raises:
            FileError: a label is neither the name nor the number of a class, or too large a number for one; some
                numbers are names of classes and others are not, or two classes have the name of one.
        """
        if negative := [value for value in self.values if value.startswith("-") and value[1:].isdecimal()]:
            raise FileError(f"There is a label {negative[0]} in {source}; labels count from 0.")
        if classes is None and all(value.isdecimal() for value in self.values):
            largest = max(self.values, key=_as_class)
            if _as_class(largest) == MOST_CLASSES:
                raise FileError(
                    f"There is a label {largest:.20} in {source}, and numbers of classes are below {MOST_CLASSES:,}; "
                    "check which column or member has the labels."
                )
            classes = [str(number) for number in range(1 + _as_class(largest))]
        elif classes is None:
            classes = sorted(self.values, key=natural_key)
        numbers = {name: number for number, name in enumerate(classes)}
        counts = Counter(classes)
        if doubled := [value for value in self.values if counts[value] > 1]:
            raise FileError(f"Two classes are called {doubled[0]}, as images in {source} are; give each another name.")
        table = np.array([_number(value, numbers, source) for value in self.values], dtype=np.int32)
        digits = [value for value in self.values if value in numbers and value.isdecimal()]
        rest = [value for value in self.values if value not in numbers]
        if digits and rest:
            raise FileError(
                f"In {source} the label {digits[0]} is the name of a class, and {rest[0]} can only be the number of "
                "one; write names or numbers throughout, or give the names of the classes that are meant."
            )
        return table[np.frombuffer(self.codes, dtype=np.int32)], tuple(classes)


def _as_class(digits: str) -> int:
    """The number of a class; `MOST_CLASSES` if it is larger, however many digits it has."""
    return min(int(digits), MOST_CLASSES) if len(digits) < 20 else MOST_CLASSES


def _number(value: str, numbers: dict[str, int], source: str | Path) -> int:
    if value in numbers:
        return numbers[value]
    if value.isdecimal() and _as_class(value) < len(numbers):
        return _as_class(value)
    raise FileError(
        f"The label {value!r:.80} in {source} is not one of the {len(numbers)} classes, neither by name nor by number; "
        "correct it, or take the names of other classes."
    )


def read_classes(path: Path, column: int = 0) -> tuple[str, ...]:
    """The names of the classes by number.

    A .csv or .tsv file has the name in `column`; if the column right or left of it holds integers, they are the
    numbers of the classes (a class may then stand in several rows), else the rows are numbered from 0. A first row
    without a number is a header. Any other file has one name a line.

    Raises:
        FileError: the file cannot be read, has no such column, or numbers classes twice or with gaps.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise FileError(f"Cannot read the class names in {path}: {reason}; give a text file in UTF-8.") from None
    if path.suffix.lower() not in (".csv", ".tsv"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    rows = [[cell.strip() for cell in row] for row in rows if row]
    width = min(map(len, rows), default=0)
    if not 0 <= column < width:
        raise FileError(f"{path} has no column {column} with class names; its columns are 0 to {width - 1}.")
    for beside in (column + 1, column - 1):
        if 0 <= beside < width:
            body = rows if rows[0][beside].isdecimal() else rows[1:]
            if body and all(row[beside].isdecimal() for row in body):
                return _by_number([(_as_class(row[beside]), row[column]) for row in body], path)
    return tuple(row[column] for row in rows)


def _by_number(pairs: list[tuple[int, str]], path: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for number, name in pairs:
        if names.setdefault(number, name) != name:
            raise FileError(f"{path} calls class {number} both {names[number]!r} and {name!r}; give it one name.")
    if sorted(names) != list(range(len(names))):
        raise FileError(f"{path} names {len(names)} classes but does not number them 0 to {len(names) - 1}.")
    return tuple(names[number] for number in range(len(names)))
