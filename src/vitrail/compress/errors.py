"""What is wrong with a compressed picture, each kind with an exit code of its own."""

from vitrail.errors import VitrailError


class CodecError(VitrailError):
    """A picture that cannot be compressed, or a file that cannot be decompressed."""

    exit_code = 3


class FormatError(CodecError):
    """Data that are no Vitrail picture, or one that this version cannot read or refuses for its size."""

    exit_code = 4


class ModelError(CodecError):
    """A file that was made with another model than the one at hand."""

    exit_code = 5


class DamageError(CodecError):
    """A file that is damaged, or cut, before the end of its first stage: there is nothing to show."""

    exit_code = 6


class DamageWarning(UserWarning):
    """A file that is damaged or cut in a later stage: the stages before were decoded, the rest is the prior's guess.

    Or it goes on behind the end of its picture, which is whole.
    """

    exit_code = 7
