"""Files from the web into the cache: resumed when interrupted, checked by SHA-256, one download at a time."""

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from vitrail.errors import FileError
from vitrail.files import cache_folder, write_text

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class RemoteFile:
    """A file that others have published."""

    name: str
    """What messages call it."""
    url: str
    """Where it is."""
    filename: str
    """Its name in the cache."""
    sha256: str | None = None
    """SHA-256 as far as it was published: all of it or its first hexadecimal digits."""
    notice: str | None = None
    """What a person should read before it is downloaded, such as its licence: shown on standard error."""


def fetch(file: RemoteFile) -> Path:
    """The local copy of a published file, downloaded unless the cache has it.

    An interrupted download leaves a `.part` that the next one goes on from. A file that was placed into the cache by
    hand counts as downloaded; a cache that others have filled need not be writable. Its SHA-256 is compared with the
    published one; where none was published, the first one seen is written beside the file and every later use is
    compared with that. Another process that wants the same file waits for this one.

    Raises:
        FileError: no connection, an answer that is not the file, a file that is not what it was, a full disk.
    """
    path = cache_folder() / file.filename
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not path.exists():
                    if file.notice:
                        print(file.notice, file=sys.stderr)
                    _download(file, path)
                    return path
        _check_known(path, file)
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"Cannot store {file.name} as {path}: {reason}; mend that or set VITRAIL_CACHE.") from None
    return path


def _download(file: RemoteFile, path: Path) -> None:
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.etag")
    by_hand = f"download it on another machine and put it at {path}"
    for _ in range(2):
        try:
            complete = _transfer(file, part, tag)
        except urllib.error.HTTPError as error:
            with error:
                reason = " ".join(str(error.reason).split())
                message = f"{file.url} answers {error.code} {reason} instead of {file.name}; {by_hand}."
            raise FileError(message) from None
        except (urllib.error.URLError, http.client.InvalidURL) as error:
            cause = getattr(error, "reason", error)
            said = getattr(cause, "strerror", None) or cause
            raise FileError(f"Cannot reach {file.url} for {file.name} ({said}); {by_hand}.") from None
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            complete = False
        if complete:
            break
    else:
        kept = part.stat().st_size if part.exists() else 0
        raise FileError(
            f"The download of {file.name} from {file.url} broke off; {kept:,} bytes are kept: "
            "run the same command again to go on."
        )
    digest = file_sha256(part)
    if not digest.startswith(file.sha256 or ""):
        part.unlink()
        tag.unlink(missing_ok=True)
        raise FileError(
            f"{file.url} sent a file with SHA-256 {digest}, but {file.name} was published with {file.sha256}; "
            "try again, and do not use it if it stays so."
        )
    write_text(_record(path), f"{digest}\n")
    part.replace(path)
    tag.unlink(missing_ok=True)


def _transfer(file: RemoteFile, part: Path, tag: Path) -> bool:
    """Adds what is missing to `part`; False when the connection ended early. `tag` tells which version it began."""
    start = part.stat().st_size if part.exists() and tag.exists() else 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "vitrail"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag.read_text(encoding="ascii", errors="ignore"))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        with error:
            whole = error.headers.get("Content-Range", "") == f"bytes */{start}"
        if not whole:
            part.unlink()
        return whole
    with response:
        if response.headers.get_content_type() == "text/html":
            raise FileError(
                f"{file.url} answers with a web page instead of {file.name}, as networks do that want a login first; "
                "open one in a browser, and try again."
            )
        begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if response.status != http.client.PARTIAL_CONTENT or begin != str(start):
            tag.unlink(missing_ok=True)
            if response.status == http.client.PARTIAL_CONTENT:
                return False  # of another part than was asked for: from the beginning, then
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if version := response.headers.get("ETag") or response.headers.get("Last-Modified"):
            tag.write_text(version, encoding="utf-8")
        with part.open("ab" if start else "wb") as written, _progress() as progress:
            task = progress.add_task(file.name, total=total, completed=start)
            while chunk := response.read1(CHUNK):
                written.write(chunk)
                progress.update(task, advance=len(chunk))
            written.flush()
            os.fsync(written.fileno())
    return total is None or part.stat().st_size == total


def _progress() -> Progress:
    """A bar on a terminal's standard error, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _check_known(path: Path, file: RemoteFile) -> None:
    """Compares a cached file with what was published, and with what it was when it was first seen."""
    digest, record = file_sha256(path), _record(path)
    first = record.read_text(encoding="utf-8", errors="replace").strip() if record.exists() else digest
    if digest != first or not digest.startswith(file.sha256 or ""):
        expected = first if digest != first else file.sha256
        another = f", or {record} alone if it was you who put another there" if not file.sha256 else ""
        raise FileError(
            f"{path} has SHA-256 {digest} instead of {expected}: it is damaged or another file; "
            f"delete it{f' and {record}' if record.exists() else ''} to download {file.name} anew{another}."
        )
    if not record.exists():
        with contextlib.suppress(FileError):  # a cache that is not ours to write to
            write_text(record, f"{digest}\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
