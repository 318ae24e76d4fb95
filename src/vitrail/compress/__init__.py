"""Images to few bytes and back: PQ-MIM (Chapter 5)."""

from vitrail.compress.codec import Codec, Decoded, Report
from vitrail.compress.errors import CodecError, DamageError, DamageWarning, FormatError, ModelError
from vitrail.compress.stages import Scheme

__all__ = [
    "Codec",
    "CodecError",
    "DamageError",
    "DamageWarning",
    "Decoded",
    "FormatError",
    "ModelError",
    "Report",
    "Scheme",
]
