"""What Vitrail says when something outside it is wrong."""


class VitrailError(Exception):
    """A problem that the person at the keyboard can mend.

    Its message is one sentence (what is wrong, where, what to do) that the command line prints as it is,
    without a traceback, before it leaves with `exit_code`.
    """

    exit_code = 1


class FileError(VitrailError):
    """A file or folder that is missing, unreadable or not what it should be."""


def from_system(error: OSError) -> VitrailError:
    """What the system refuses, as a sentence: a full disk, a name too long, a right that is missing."""
    place = f"{error.filename}: " if error.filename else ""
    return VitrailError(f"{place}{error.strerror or error}; mend that and try again.")
