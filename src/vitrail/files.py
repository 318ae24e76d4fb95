"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.errors import FileError

_UNFINISHED = ".vitrail-unfinished."
"""How the names of temporary files begin; nobody else's do."""


def cache_folder() -> Path:
    """Where downloads and indices stay: $VITRAIL_CACHE, else vitrail/ in the user's cache folder."""
    if folder := os.environ.get("VITRAIL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitrail"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends, deleted when the block raises.

    The temporary name keeps the suffix of `path`, since many writers choose their format by it. Folders above
    `path` are made. The bytes reach the disk before the rename, so that not even a power cut leaves half a file
    under the final name. Of a link, what it leads to is written.

    Raises:
        FileError: the folder cannot be made or written to, the disk is full, or `path` is a folder, a device or a
            pipe.
    """
    path = _behind_link(Path(path))
    _refuse_what_is_no_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_UNFINISHED, suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner can read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Tells whether a file can be written to `path`, before anything is computed for it; leaves nothing behind.

    Raises:
        FileError: its folder cannot be made or written to, or `path` is a folder, a device or a pipe.
    """
    path = _behind_link(Path(path))
    _refuse_what_is_no_file(path)
    try:
        folder = next(place for place in path.absolute().parents if place.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from None


def remove_unfinished(folder: str | Path) -> None:
    """Deletes the temporary files of `atomic_path` in `folder` that processes which were killed have left.

    For folders that one process writes to: those of another would go as well.

    Raises:
        FileError: one of them cannot be deleted.
    """
    remove(Path(folder).glob(f"{_UNFINISHED}*"))


def remove(paths: Iterable[Path]) -> None:
    """Deletes files, as far as they are there.

    Raises:
        FileError: one of them cannot be deleted.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from None


def _behind_link(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _refuse_what_is_no_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise FileError(f"Cannot write {path}: it is {what}; give the name of a file.")


def _cannot_write(path: Path, error: OSError) -> FileError:
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "a file stands where its folder should be" if in_the_way else error.strerror or error
    return FileError(f"Cannot write {path}: {reason}; make room, or choose a folder that you may write to.")


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
