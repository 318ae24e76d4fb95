"""The header of a compressed picture; `docs/codec-format.md` describes the whole file.

1 byte    magic, 0xD7
4 bits    version, 1
4 bits    kind of stages
1 byte    number of stages - 1, only where the kind asks for it
2 bytes   model: the first bytes of its fingerprint
4 bits    quality - 1, the sub-vectors that are sent
4 + 4     n, m: binary digits of width - 1 and height - 1
n + m     width - 1, height - 1
0 bits to the next byte
"""

from dataclasses import dataclass, field
from typing import Self

from vitrail.compress.errors import DamageError, FormatError
from vitrail.compress.stages import MAX_STAGES, Kind, Scheme

MAGIC = 0xD7
VERSION = 1
MAX_SIDE = 2**15
MAX_QUALITY = 16
MODEL_BYTES = 2

# What the 4 bits mean; a scheme without a number here has it in the next byte.
_SCHEMES: tuple[tuple[Kind, int | None], ...] = (
    ("quincunx", 5),
    ("marginal", 1),
    ("raster", 1),
    ("quincunx", None),
    ("confidence_linear", None),
    ("confidence_doubling", None),
)


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its first symbol."""

    model: bytes
    """The first 2 bytes of the model's fingerprint."""
    width: int
    """Pixels, 1 .. 32768."""
    height: int
    """Pixels, 1 .. 32768."""
    quality: int
    """Sub-vectors that are sent of each position, 1 .. 16."""
    scheme: Scheme = field(default_factory=Scheme)
    """The order of the positions."""

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise FormatError(
                f"A picture of {self.width} x {self.height} pixels does not fit the format; "
                f"its sides may have 1 to {MAX_SIDE:,}."
            )
        if not 1 <= self.quality <= MAX_QUALITY:
            raise FormatError(f"Quality {self.quality} does not fit the format; choose 1 to {MAX_QUALITY}.")

    def pack(self) -> bytes:
        """The header's bytes: 8 for a picture of 256 x 256 pixels in the default stages."""
        code, explicit = _scheme_code(self.scheme)
        digits = [(self.width - 1).bit_length(), (self.height - 1).bit_length()]
        fields = [(self.quality - 1, 4), (digits[0], 4), (digits[1], 4)]
        fields += [(self.width - 1, digits[0]), (self.height - 1, digits[1])]
        value = size = 0
        for number, bits in fields:
            value, size = value << bits | number, size + bits
        value <<= -size % 8
        return bytes([MAGIC, VERSION << 4 | code, *explicit]) + self.model + value.to_bytes((size + 7) // 8, "big")

    @classmethod
    def unpack(cls, data: bytes) -> tuple[Self, bytes]:
        """The header at the beginning of `data`, and the data behind it.

        Raises:
            FormatError: the data are no Vitrail picture, or of a version that is not known here.
            DamageError: the data end within the header.
        """
        if data[:1] != bytes([MAGIC]):
            raise FormatError("The data are no picture that Vitrail has compressed; check that it is the right file.")
        version, code = divmod(_byte(data, 1), 16)
        if version != VERSION or code >= len(_SCHEMES):
            raise FormatError(
                "The data are of a version of the format that is not known here, or not a Vitrail picture at all; "
                "decompress it with a newer Vitrail."
            )
        kind, stages = _SCHEMES[code]
        at = 2
        if stages is None:
            stages = _byte(data, at) + 1
            at += 1
        _byte(data, at + MODEL_BYTES - 1)
        model = data[at : at + MODEL_BYTES]
        at += MODEL_BYTES
        quality, across = divmod(_byte(data, at), 16)
        down = _byte(data, at + 1) >> 4
        size = 12 + across + down
        end = at + (size + 7) // 8
        _byte(data, end - 1)
        value = int.from_bytes(data[at:end], "big") >> -size % 8
        width, height = (value >> down) % (1 << across) + 1, value % (1 << down) + 1
        if stages > MAX_STAGES:
            raise DamageError("The header of the compressed picture is damaged, and with it all is lost.")
        header = cls(model, width, height, quality + 1, Scheme(kind, stages))
        if header.pack() != data[:end]:  # every header has one form, so that damage cannot hide in another
            raise DamageError("The header of the compressed picture is damaged, and with it all is lost.")
        return header, data[end:]


def _scheme_code(scheme: Scheme) -> tuple[int, list[int]]:
    for code, (kind, stages) in enumerate(_SCHEMES):
        if kind == scheme.kind and stages in (scheme.stages, None):
            return code, [scheme.stages - 1] if stages is None else []
    raise AssertionError(scheme)


def _byte(data: bytes, index: int) -> int:
    if index >= len(data):
        raise DamageError(f"The compressed picture ends within its header, after {len(data)} bytes: all is lost.")
    return data[index]
