"""Millions of paths in little memory."""

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True, eq=False)
class PathIndex:
    """A list of paths in one buffer of bytes.

    It takes the bytes of the paths and eight more each, and workers that are forked share it: a list of a million
    strings is several times as large, and is copied page by page as soon as a worker counts references to them.

    Attributes:
        text: uint8, all paths one after the other.
        ends: [n] int64, where each path ends in `text`.
    """

    text: np.ndarray
    ends: np.ndarray

    @classmethod
    def build(cls, paths: Iterable[str]) -> Self:
        """The index of any number of paths, which need not be in memory together."""
        text, ends = bytearray(), array("q")
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        return cls(np.frombuffer(bytes(text), dtype=np.uint8), np.frombuffer(ends.tobytes(), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        number = range(len(self))[number]
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.text[start : self.ends[number]].tobytes())
