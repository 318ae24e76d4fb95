"""The error of a sample that cannot be read."""

from pathlib import Path

from vitrail.errors import FileError

TOO_LARGE = "its numbers are too large"
"""The reason of one that cannot be computed with in float32."""


class CorruptSample(FileError):  # noqa: N818 (a sample, of which the error tells)
    """A file of a data set that is damaged or not what it should be.

    Data sets raise it from `__getitem__`; the loader then stops with its sentence, or skips and counts the sample.

    Attributes:
        path: the file; for a member of an archive, the archive's path and the member's name.
        reason: what is wrong with it, a clause without a full stop.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(str(path), reason)  # both in `args`, so that the error survives the way out of a worker
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"Cannot read {self.path}: {self.reason}; mend or remove it, or skip such files: --on-corrupt skip, in "
            "training --loader.on-corrupt skip."
        )


def check_holds_data(path: Path) -> None:
    """Raises CorruptSample if there is no such file, or it is empty: decoders tell neither clearly."""
    if not path.is_file():
        raise CorruptSample(path, "there is no such file")
    if not path.stat().st_size:
        raise CorruptSample(path, "it is empty")
