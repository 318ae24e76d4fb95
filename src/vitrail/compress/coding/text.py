"""Bytes as text that fits where only text goes: 10 bits a character, 350 bytes in the 280 characters of a tweet.

The 1024 characters are letters of the Latin, Greek, Cyrillic, Armenian and Georgian scripts below U+1100, which X
counts as one character each. They are written from left to right, no normalisation (NFC, NFKC) changes them, none is a
mark that joins its neighbour, and with neither punctuation nor space among them no text becomes a link, a tag or two
lines. Capitals matter.
"""

from codecs import getincrementaldecoder

import numpy as np

from vitrail.compress.coding.bitstream import MAGIC
from vitrail.compress.errors import FormatError

TWEET = 280
BITS = 10

_RANGES = """
    41-5A 61-7A C0-D6 D8-F6 F8-131 134-13E 141-148 14A-17E 180-1C3 1CD-1F0 1F4-2AF 370-373 376-376 386-386 388-38A
    38C-38C 38E-3A1 3A3-3CE 3D7-3E1 3F3-3F3 400-481 48A-4CE 4D0-4F5 4F8-4F9 500-50F 531-556 561-586 10A0-10C5 10D0-10F8
"""
_BOUNDS = [[int(end, 16) for end in bounds.split("-")] for bounds in _RANGES.split()]

ALPHABET = "".join(chr(code) for first, last in _BOUNDS for code in range(first, last + 1))
LAST = "0123"  # the last character where only 2 bits are left: 10 would leave open whether a byte 0 follows
_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_PLACES = 1 << np.arange(BITS)[::-1]


def to_text(data: bytes) -> str:
    """The text of `data`: a character for every 10 bits, the last of them filled up with zeros."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8)).astype(np.int64)
    last = ""
    if len(bits) % BITS == 2:
        bits, last = bits[:-2], LAST[2 * bits[-2] + bits[-1]]
    bits = np.pad(bits, (0, -len(bits) % BITS))
    return "".join(ALPHABET[value] for value in bits.reshape(-1, BITS) @ _PLACES) + last


def from_text(text: str) -> bytes:
    """The bytes that `to_text` was given; spaces and line breaks within the text are passed over.

    Of a text that was cut, the bytes that are whole.

    Raises:
        FormatError: the text has a character that `to_text` never writes there.
    """
    text = "".join(text.split())
    letters, last = (text[:-1], text[-1]) if text[-1:] in tuple(LAST) else (text, "")
    if foreign := set(letters) - _VALUES.keys():
        first = min(foreign, key=lambda character: (character in LAST, letters.index(character)))
        raise FormatError(f"The text has {first!r}, which no compressed picture has; copy it anew.")
    values = np.fromiter((_VALUES[letter] for letter in letters), dtype=np.uint16, count=len(letters))
    values = np.append(values, [LAST.index(digit) << BITS - 2 for digit in last]).astype(np.uint16)
    fours = np.pad(values, (0, -len(values) % 4)).reshape(-1, 4) @ (1 << np.arange(0, 4 * BITS, BITS)[::-1])
    data = fours.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 3:].tobytes()  # 5 bytes each
    return data[: (BITS * len(letters) + 2 * len(last)) // 8]


def is_text(data: bytes) -> bool:
    """Whether the bytes of a file are such a text (in UTF-8), if a damaged one, rather than a compressed picture.

    Its first letter tells, for it holds the magic of the header; a file may be of any size.
    """
    try:
        beginning = getincrementaldecoder("utf-8")().decode(data.lstrip()[:64])
    except UnicodeDecodeError:
        return False
    first = next((_VALUES[character] for character in beginning if character in _VALUES), 0)
    return first >> BITS - 8 == MAGIC
