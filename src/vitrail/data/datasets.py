"""Data sets of images: class folders, flat folders, list files, tar shards.

Any other object with `__len__` and `__getitem__(int)` that gives these samples serves as well.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from vitrail.config import check_range
from vitrail.data.augmentation import Transform
from vitrail.data.images import image_names, is_image, natural_key, read_image, scan
from vitrail.data.labels import LabelEncoder, read_classes
from vitrail.data.paths import PathIndex
from vitrail.data.samples import LabelledImage, UnlabelledImage, as_sample
from vitrail.data.shards import find_shards
from vitrail.data.tars import TarImages
from vitrail.errors import FileError


class ImageFiles:
    """Image files, labelled or not.

    Attributes:
        paths: of the images, relative to `root` or absolute.
        labels: [n] int32, or None.
        classes: the names of the classes by label, or None without labels.
    """

    def __init__(
        self,
        root: str | Path,
        paths: PathIndex,
        transform: Transform,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] | None = None,
        at_least: int | None = None,
    ):
        self.root = Path(root)
        self.paths = paths
        self.transform = transform
        self.labels = labels
        self.classes = classes
        self.at_least = at_least
        if not len(paths):
            raise FileError(f"There is no image in {root}; give a folder or a list with images.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> LabelledImage | UnlabelledImage:
        image = read_image(self.root / self.paths[number], at_least=self.at_least)
        return as_sample(self.transform(image), self.labels, number)


class ImageFolder(ImageFiles):
    """Class folders: the images at any depth below `root/<class>`.

    Classes are numbered in natural order, in which numbers in names compare as numbers: the folders "0" to "999" of
    ImageNet-V2 get the labels 0 to 999. With `classes` given, folders are named, or numbered, as the classes are.

    Raises:
        FileError: there is no image, a folder without any, or one that is none of `classes`.
    """

    def __init__(
        self, root: str | Path, transform: Transform, classes: Sequence[str] | None = None, at_least: int | None = None
    ):
        root, encoder = Path(root), LabelEncoder()
        folders = scan(root)[1]

        def names() -> Iterator[str]:
            for folder in folders:
                for name in image_names(root / folder, recursive=True):
                    encoder.add(folder)
                    yield f"{folder}/{name}"

        paths = PathIndex.build(names())
        if classes is None:
            if empty := [folder for folder in folders if folder not in encoder.values]:
                raise FileError(
                    f"The class folder {root / empty[0]} has no image; remove it, or give the names of the classes."
                )
            classes = folders
        super().__init__(root, paths, transform, *encoder.encode(classes, root), at_least)


class ImageList(ImageFiles):
    """The images that a text file lists, one a line: a path and labels, between tabs, commas or spaces.

    Tabs win over commas, and commas over spaces, by the first line; a path or label with a comma stands in double
    quotes; paths may have spaces if labels that follow after spaces are numbers. A first line "path, ..." is a header.

    Args:
        file: the list.
        transform: of each picture.
        root: what paths are relative to, by default the folder of the list.
        label_column: the column of the label (the path is column 0), None for no labels. A list of bare paths has none.
        classes: names of the classes by number.
        at_least: as in `read_image`.

    Raises:
        FileError: the list cannot be read, is empty, or a line has no label.
    """

    def __init__(
        self,
        file: str | Path,
        transform: Transform,
        *,
        root: str | Path | None = None,
        label_column: int | None = 1,
        classes: Sequence[str] | None = None,
        at_least: int | None = None,
    ):
        file, encoder, bare = Path(file), LabelEncoder(), 0

        def names() -> Iterator[str]:
            nonlocal bare
            for line, row in _rows(file):
                if not row[0] or (label_column is not None and len(row) > label_column and not row[label_column]):
                    missing = "label" if row[0] else "path"
                    raise FileError(f"Line {line} of {file} has an empty {missing}; fill it in, or remove the line.")
                if label_column is not None and len(row) > label_column:
                    encoder.add(row[label_column])
                elif label_column is not None and len(row) > 1:
                    raise FileError(f"Line {line} of {file} has no column {label_column}; its label must stand there.")
                else:
                    bare += 1
                if bare and encoder.codes:
                    raise FileError(f"Line {line} of {file} differs from those before: some have a label, some none.")
                yield row[0]

        paths = PathIndex.build(names())
        if not len(paths):
            raise FileError(f"There is no image in the list {file}; give one that names some, one a line.")
        labels, names_of_classes = encoder.encode(classes, file) if encoder.codes else (None, None)
        super().__init__(root or file.parent, paths, transform, labels, names_of_classes, at_least)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line of a list that is not blank."""
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            first = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            separator = next((mark for mark in "\t," if mark in first), None)
            rows = _split(lines) if separator is None else csv.reader(lines, delimiter=separator, skipinitialspace=True)
            filled = ((number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1) if any(row))
            for place, (number, row) in enumerate(filled):
                if place or not _is_header(row[0]):
                    yield number, row
    except (OSError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise FileError(f"Cannot read the list {file}: {reason}; give a text file with a path a line.") from None


def _is_header(cell: str) -> bool:
    """Whether the first cell of a list is a title; "Image 1.jpg" is none."""
    return cell.casefold().split()[:1] in (["path"], ["file"], ["filename"], ["image"]) and not is_image(cell)


def _split(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        path, numbers = re.fullmatch(r"(.*?)((?:\s+\d+)*)\s*", line).groups()  # type: ignore[union-attr]
        yield [path, *numbers.split()]


def _is_list(path: Path) -> bool:
    return path.is_file() and path.suffix != ".tar"


@dataclass(frozen=True)
class ImageData:
    """A set of images on disk; what `root` is shows in what it holds."""

    root: Path
    """A folder of class folders, a flat folder of images, a list file, or tars: one, a folder, *.tar, {00..31}.tar."""
    list: Path | None = None
    """A list of paths relative to the root, with labels: `path, label` a line, also between tabs or spaces."""
    label_column: int | None = 1
    """The list's column of the label; the path is column 0."""
    tar_label: str = "cls"
    """Where tar shards have the label: members with this suffix, else this field of the .json members."""
    classes: Path | None = None
    """Names of the classes: a text file with a name a line, or a CSV file."""
    class_column: int = 0
    """The CSV file's column of the name; a column of numbers beside it numbers the classes."""
    labelled: bool = True
    """Whether to read labels; without, all images at any depth below a folder count."""
    at_least: int | None = None
    """Decode large JPEGs at a fraction of their size, faster, if the short side keeps so many pixels."""

    def __post_init__(self) -> None:
        check_range(self, "label_column", "at_least", least=1)
        check_range(self, "class_column", least=0)

    def at(self, root: Path) -> Self:
        """The same of another place; the label's column goes along if that is a list file, and to a list the root."""
        if not _is_list(root):
            return replace(self, root=root, list=None, label_column=1)
        return replace(self, root=root) if self.list is None else replace(self, list=root)

    def open(self, transform: Transform, classes: Sequence[str] | None = None) -> ImageFiles | TarImages:
        """The data set.

        Args:
            transform: of each picture.
            classes: names of the classes by number, as of the training set; by default those of the field `classes`,
                else those that the data name.

        Raises:
            FileError: there is nothing, no image, or both class folders and loose images; labels and classes
                disagree; or a label's column is given where there is no list.
        """
        if classes is None and self.classes is not None:
            classes = read_classes(self.classes, self.class_column)
        if self.list is not None or _is_list(self.root):
            return self._open_list(transform, classes)
        if self.labelled and self.label_column != 1:
            raise FileError(
                f"{self.root} is no list file, whose column {self.label_column} could be the label; "
                "leave the label's column out, or give a list."
            )
        if shards := self._shards():
            label = self.tar_label if self.labelled else None
            return TarImages(shards, transform, label=label, classes=classes, at_least=self.at_least)
        loose = scan(self.root)[0]
        if not self.labelled or not self._has_class_folders():
            paths = PathIndex.build(image_names(self.root, recursive=not self.labelled))
            return ImageFiles(self.root, paths, transform, at_least=self.at_least)
        if loose:
            raise FileError(
                f"{self.root} has both folders of images and images of its own, such as {loose[0]}; "
                "move those into class folders, or read all without labels."
            )
        return ImageFolder(self.root, transform, classes, self.at_least)

    def _has_class_folders(self) -> bool:
        folders = scan(self.root)[1]
        return any(True for folder in folders for _ in image_names(self.root / folder, recursive=True))

    def _open_list(self, transform: Transform, classes: Sequence[str] | None) -> ImageFiles:
        if self.list is None and is_image(self.root.name):
            raise FileError(f"{self.root} is one image; give the folder it lies in, or a list of images.")
        return ImageList(
            self.list or self.root,
            transform,
            root=self.root if self.list else None,
            label_column=self.label_column if self.labelled else None,
            classes=classes,
            at_least=self.at_least,
        )

    def _shards(self) -> tuple[Path, ...]:
        if self.root.is_file():
            return (self.root,)
        if self.root.is_dir():
            found = [] if scan(self.root)[0] else [str(path) for path in self.root.glob("*.tar")]
            if found and self._has_class_folders():
                raise FileError(
                    f"{self.root} has both folders of images and tars, such as {Path(found[0]).name}; "
                    "move one of both elsewhere."
                )
        elif any(mark in str(self.root) for mark in "{*?["):
            return find_shards(self.root)
        else:
            raise FileError(f"There is no file or folder {self.root}; give a folder, a list, or tar shards.")
        return tuple(Path(path) for path in sorted(found, key=natural_key))
