"""Tar files as WebDataset writes them: which there are, and what members they have."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vitrail.data.images import natural_key
from vitrail.errors import FileError

_MOST = 1_000_000  # tars of one pattern: more is a slip in its numbers


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        name: its path in the tar.
        key: the path up to the first dot of its last part; members of one sample share it, one after the other.
        suffix: what follows that dot, in lower case: "jpg", "depth.png".
        offset: bytes from the start of the tar.
        size: bytes.
    """

    name: str
    key: str
    suffix: str
    offset: int
    size: int


def find_shards(pattern: str | Path) -> tuple[Path, ...]:
    """The tars that a pattern names, in natural order where it does not tell: one file, `pairs-{000..127}.tar`,
    `{street,room}.tar`, `pairs-*.tar`.

    Raises:
        FileError: nothing matches a pattern with `*`, `?` or `[`, or its numbers are too far apart.
    """
    text = str(pattern)
    if braces := re.search(r"\{([^{}]+)\}", text):
        before, after = text[: braces.start()], text[braces.end() :]
        return tuple(path for option in _options(braces[1]) for path in find_shards(f"{before}{option}{after}"))
    if not any(mark in text for mark in "*?["):
        return (Path(text),)
    anchor = Path(text).anchor
    found = [str(path) for path in Path(anchor).glob(str(Path(text).relative_to(anchor))) if path.suffix == ".tar"]
    if not found:
        raise FileError(f"No tar file matches {text}; check the pattern.")
    return tuple(Path(path) for path in sorted(found, key=natural_key))


def _options(choice: str) -> list[str]:
    """`000..127` or `street,room`."""
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", choice)
    if numbers is None:
        return choice.split(",")
    first, last = numbers.groups()
    if max(len(first), len(last)) > 18 or int(last) - int(first) >= _MOST:
        raise FileError(f"{{{choice:.40}}} names more than {_MOST:,} tar files; check the numbers.")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def open_shard(shard: Path) -> BinaryIO:
    """A tar, to be read.

    Raises:
        FileError: it is a pipe, which would be waited for.
        OSError: as of any file.
    """
    if shard.is_fifo():
        raise FileError(f"{shard} is a pipe, not a file; give a tar file.")
    return shard.open("rb")


def read_span(shard: Path, offset: int, size: int) -> bytes:
    """So many bytes of a tar, which is opened anew: forked workers would share a handle that is kept, and its position.

    Raises:
        OSError: as of any file.
    """
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def read_members(shard: Path) -> Iterator[Member]:
    """The members of a tar that are files, from its headers.

    Raises:
        FileError: it is missing, a pipe, truncated, damaged or no plain tar file.
    """
    last = None
    try:
        with open_shard(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile would keep them all
                if member.isfile():
                    last = member.name
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    yield Member(member.name, f"{folder}{slash}{stem}", suffix.lower(), member.offset_data, member.size)
            # tarfile ends quietly at a header that it cannot read; a whole file ends with a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError
    except tarfile.TarError:
        seen = f" after {last}" if last else ""
        raise FileError(
            f"{shard} ({shard.stat().st_size:,} bytes) is truncated, damaged or not a plain tar file{seen}; "
            "copy or make it again, and decompress it if it is compressed."
        ) from None
    except OSError as error:
        raise FileError(f"Cannot read {shard}: {error.strerror}; check its path and its rights.") from None
