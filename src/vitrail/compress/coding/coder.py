"""The range coder: integer symbols and their integer frequencies to bytes and back.

One stream holds everything after the header, so that neither stages nor checks are rounded up to whole bytes. The
encoder and the decoder answer the same calls in the same order: what the one is given, the other returns.
"""

import zlib
from typing import Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from vitrail.compress.coding.frequencies import OFFSETS, PRECISION, Integers, code_length, normalize
from vitrail.compress.errors import DamageError

WORD = 4  # bytes that the coder reads and writes at once

_categorical = constriction.stream.model.Categorical(perfect=False)
_BYTES = normalize(np.ones((1, 256), dtype=np.int64))
# The first offset nearly always leaves the margin: it costs 1/177 of a bit, any other 12 bits.
_OFFSETS = normalize(np.array([[255 * (OFFSETS - 1)] + [1] * (OFFSETS - 1)], dtype=np.int64))


class Stream(Protocol):
    """What `Encoder` and `Decoder` have in common."""

    bits: float
    """The code length so far: log2 of one over the product of all probabilities."""

    @property
    def size(self) -> int:
        """The bytes of a stream that ends here."""

    def symbols(self, symbols: Integers, frequencies: Integers) -> Integers:
        """[n] symbols with [n, V] frequencies each, or [V] common ones, that sum to 2^24 - V -> [n] symbols."""

    def offset(self, offset: int) -> int:
        """An offset of the grid that logits are rounded to."""

    def check(self, length: int) -> None:
        """Codes `length` bytes of the running check, most significant first."""


class _Checked:
    """A running CRC-32 over what both sides know: the header, the model's fingerprint and all symbols so far."""

    def __init__(self, known: bytes) -> None:
        self.bits = 0.0
        self._check = zlib.crc32(known)
        self._width, self._words = 2**64 - 1, 0  # of the coder's interval, and how many words it has left behind

    @property
    def size(self) -> int:
        """The bytes of a stream that ends here (`Encoder.finish`)."""
        return WORD * self._words + 8 - (self._width.bit_length() - 1) // 8

    def _seen(self, symbols: Integers, frequencies: Integers) -> None:
        self._check = zlib.crc32(symbols.astype("<u2").tobytes(), self._check)
        self._count(symbols, frequencies)

    def _count(self, symbols: Integers, frequencies: Integers) -> None:
        table = np.broadcast_to(frequencies, (len(symbols), frequencies.shape[-1]))
        chosen = np.take_along_axis(table, symbols[:, None], axis=1)
        self.bits += code_length(chosen)
        for frequency in chosen[:, 0].tolist():
            self._width = (self._width >> PRECISION) * (frequency + 1)
            if self._width < 2**32:
                self._width, self._words = self._width << 8 * WORD, self._words + 1

    def _check_bytes(self, length: int) -> Integers:
        return np.frombuffer(self._check.to_bytes(4, "big")[:length], dtype=np.uint8).astype(np.int64)


class Encoder(_Checked):
    """Writes a stream; `known` is what the decoder must know alike for the checks to hold."""

    def __init__(self, known: bytes = b"") -> None:
        super().__init__(known)
        self._coder = constriction.stream.queue.RangeEncoder()

    def symbols(self, symbols: Integers, frequencies: Integers) -> Integers:
        """Encodes [n] symbols with [n, V] or [V] frequencies; returns them."""
        self._encode(symbols, frequencies)
        self._seen(symbols, frequencies)
        return symbols

    def offset(self, offset: int) -> int:
        """Encodes an offset; returns it."""
        self._encode(np.array([offset]), _OFFSETS)
        self._seen(np.array([offset]), _OFFSETS)
        return offset

    def check(self, length: int) -> None:
        """Encodes the first `length` bytes of the running check."""
        value = self._check_bytes(length)
        self._encode(value, _BYTES.repeat(length, axis=0))
        self._count(value, _BYTES)

    def _encode(self, symbols: Integers, frequencies: Integers) -> None:
        if len(symbols):
            self._coder.encode(symbols.astype(np.int32), *_model(frequencies))

    def finish(self) -> bytes:
        """The stream: as few bytes as surely name the final interval, the code length rounded up to whole bytes.

        Every number in the interval decodes, and the decoder reads zeros after the end. So the bytes are those of the
        first multiple, in the interval, of the greatest power of 256 that is not wider than it. A stream is thus never
        shorter than its code length, by which a decoder knows that it was cut.
        """
        position, (lower, width) = self._coder.pos()
        size = WORD * position + 8  # bytes of the interval's ends; `lower` is the last 8 of the lower one
        sealed = self._coder.get_compressed().astype(">u4").tobytes()  # a number in the interval
        inside = int.from_bytes(sealed.ljust(size, b"\0"), "big")
        lower = inside - (inside - lower) % 2**64
        spare = (width.bit_length() - 1) // 8
        return (-(-lower >> 8 * spare)).to_bytes(size - spare, "big")


class Decoder(_Checked):
    """Reads a stream; of the symbols and offsets that it is called with, only the number counts."""

    def __init__(self, data: bytes, known: bytes = b"") -> None:
        super().__init__(known)
        self._available = 8 * len(data)
        padded = data.ljust(-(-len(data) // WORD) * WORD + 2 * WORD, b"\0")
        words = np.frombuffer(padded, dtype=">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def symbols(self, symbols: Integers, frequencies: Integers) -> Integers:
        """Decodes as many symbols as there are in `symbols`.

        Raises:
            DamageError: the data are none that an encoder can have made, or have ended.
        """
        decoded = self._decode(len(symbols), frequencies)
        self._seen(decoded, frequencies)
        self._check_end()  # at once: what a few bytes claim may have days to go until the next check
        return decoded

    def offset(self, offset: int = 0) -> int:
        """Decodes an offset."""
        decoded = self._decode(1, _OFFSETS)
        self._seen(decoded, _OFFSETS)
        return int(decoded[0])

    def check(self, length: int) -> None:
        """Decodes `length` bytes and compares them with the running check.

        Raises:
            DamageError: they differ, or the data have ended before them.
        """
        decoded = self._decode(length, _BYTES.repeat(length, axis=0))
        self._count(decoded, _BYTES)
        self._check_end()
        if (decoded != self._check_bytes(length)).any():
            raise DamageError("its check does not agree")

    def _check_end(self) -> None:
        if self.bits > self._available + 1:  # the code length is a sum of rounded logarithms
            raise DamageError("the data end there")

    def _decode(self, count: int, frequencies: Integers) -> Integers:
        if not count:
            return np.zeros(0, dtype=np.int64)
        model, *tables = _model(frequencies)
        try:
            decoded = self._coder.decode(model, *(tables or [count]))
        except AssertionError:  # constriction's answer to a stream that no encoder writes
            raise DamageError("its data are none that an encoder can have made") from None
        return decoded.astype(np.int64)


def _model(frequencies: Integers) -> tuple[object, ...]:
    """The arguments that name a distribution: a table a symbol, or one for all.

    Integers that sum to 2^24 - V are scaled by exactly 1 and gain 1 each: the coder's table is ours, to the last bit.
    """
    table: NDArray[np.float64] = frequencies.astype(np.float64)
    if table.ndim == 2:
        return _categorical, table
    return (constriction.stream.model.Categorical(table, perfect=False),)
