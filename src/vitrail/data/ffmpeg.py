"""FFmpeg, by the package av."""

from pathlib import Path
from typing import Any

from vitrail.errors import VitrailError


def load_av(what: str) -> Any:
    """The package.

    Raises:
        VitrailError: it is missing, and `what` cannot be read.
    """
    try:
        import av
    except ImportError:
        raise VitrailError(f"{what} is read with av, which is missing; pip install 'vitrail[bind]'.") from None
    return av


def open_container(av: Any, path: Path) -> Any:
    """A file to read, whatever its titles are written in.

    Raises:
        av.FFmpegError: it is damaged, or nothing that FFmpeg can read.
    """
    # Titles that are not UTF-8 are an error by default before version 19, and never from then on.
    titles = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(str(path), **titles)
