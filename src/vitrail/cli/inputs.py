"""What verbs share: files named on the command line, the device, progress."""

import argparse
import glob
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import FileError, VitrailError
from vitrail.tables import is_whole

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

SIZES_HELP = "test resolutions, pixels a side (default: the one the model was made for)"


def positive(text: str) -> int:
    """The type of options that count something."""
    if not is_whole(text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text:.20} is no whole number from 1 to {10**9 - 1:,}")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that `device` reads."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")


def device(name: str) -> "torch.device":
    """The device called `name`; "auto" is the fastest of this machine.

    Raises:
        VitrailError: there is no such device.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen).cpu()
    except (RuntimeError, AssertionError):
        raise VitrailError(f"This machine has no device {name}; take --device cpu or leave it out.") from None
    return chosen


def places(inputs: Sequence[str]) -> Iterator[Path]:
    """The files and folders that `inputs` name, in order: themselves, quoted globs, `-` for a list of files on stdin.

    Raises:
        FileError: one of them names nothing.
    """
    for name in inputs:
        if name == "-":
            yield from (_listed(line.rstrip("\n")) for line in sys.stdin if line.strip())
        elif Path(name).exists():
            yield Path(name)
        elif matches := sorted(glob.glob(name, recursive=True)):  # noqa: PTH207, Path.glob refuses absolute patterns
            yield from map(Path, matches)
        else:
            raise FileError(f"There is no file {name}; name files, folders, quoted patterns, or - for a list on stdin.")


def _listed(line: str) -> Path:
    """The file in a line of a list, which may end as Windows ends lines."""
    return Path(line if Path(line).exists() else line.rstrip("\r"))


def image_files(inputs: Sequence[str]) -> list[Path]:
    """The image files that `inputs` name, as `places` does; of folders all images below.

    Raises:
        FileError: one of them names nothing, or there is no image.
    """
    from vitrail.data.images import list_images

    files: list[Path] = []
    for place in places(inputs):
        files += list_images(place, recursive=True) if place.is_dir() else [place]
    if not files:
        raise FileError(f"There is no image in {', '.join(inputs)}; name a folder that holds some.")
    return files


def progress() -> "Progress":
    """A progress bar on stderr; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows in aligned columns, numbers to the right, without colours; one line each, whatever is in a file's name."""
    body = [tuple(map(_in_one_line, row)) for row in rows]
    columns = list(zip(header, *body, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    for row in (tuple(header), *body):
        cells = (cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numbers, strict=True))
        print("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    return cell.removeprefix("-").replace(".", "", 1).isdecimal() or not cell


def _in_one_line(cell: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", lambda control: repr(control[0])[1:-1], cell)
