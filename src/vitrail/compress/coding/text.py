"""Bytes as text that fits where only text goes: 10 bits a character, 350 bytes in the 280 characters of a tweet.

The 1024 characters are letters of the Latin, Greek, Cyrillic, Armenian and Georgian scripts below U+1100, which X
counts as one character each. They are written from left to right, no normalisation (NFC, NFKC) changes them, none is a
mark that joins its neighbour, and with neither punctuation nor space among them no text becomes a link, a tag or two
lines. Capitals matter.
"""

import numpy as np

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

    Raises:
        FormatError: the text is not one that `to_text` makes.
    """
    text = "".join(text.split())
    letters, last = (text[:-1], text[-1]) if text[-1:] in tuple(LAST) else (text, "")
    try:
        values = np.array([_VALUES[letter] for letter in letters], dtype=np.int64)
    except KeyError as error:
        raise FormatError(f"The text has {error.args[0]!r}, which no compressed picture has; copy it anew.") from None
    bits = (values[:, None] & _PLACES != 0).flatten()
    if last:
        bits = np.append(bits, [LAST.index(last) >= 2, LAST.index(last) % 2])
    data = np.packbits(bits[: len(bits) // 8 * 8]).tobytes()
    if to_text(data) != text:
        raise FormatError("The text is not that of a compressed picture, or its end is missing; copy it whole.")
    return data


def is_text(data: bytes) -> bool:
    """Whether the bytes of a file are such a text (in UTF-8) rather than a compressed picture itself."""
    try:
        return bool(from_text(data.decode("utf-8")))
    except (UnicodeDecodeError, FormatError):
        return False
