"""Text: CLIP's tokens, and CLIP's causal transformer (Section 6.3.3)."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vitrail.bind.encoder import Encoder, text_encoder
from vitrail.bind.modality import Modality
from vitrail.config import check_range
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import FileError, VitrailError

VOCABULARY = 49408
"""CLIP's byte-pair tokens; the last two begin and end a text."""


class TruncationWarning(UserWarning):
    """A text of more tokens than the encoder reads: it stands for its beginning alone."""


@dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Strings, of 77 tokens each with those that begin and end it; the defaults are OpenCLIP's ViT-H text encoder."""

    name: ClassVar[str] = "text"
    suffixes: ClassVar[frozenset[str]] = frozenset({".txt"})

    width: int = 1024
    depth: int = 24
    heads: int = 16
    learned_temperature: bool = True
    length: int = 77
    """Tokens of a text with its first and last; what is longer is cut, with a `TruncationWarning`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "length", least=3)

    def build(self, dimension: int) -> Encoder:
        """[B, length] int64 -> [B, dimension]."""
        return text_encoder(self, dimension, vocabulary=VOCABULARY, length=self.length)

    def read(self, source: str | Path) -> Tensor:
        """A text, or what is written in a file (UTF-8) where `source` is a Path; lower case is all the same to it.

        Returns:
            [1, length] int64: the tokens between those of beginning and end, then zeros.

        Raises:
            FileError: there is no such file.
            CorruptSample: it is not UTF-8, or holds nothing.
            VitrailError: the packages of the extra are missing.
        """
        text, where = source, "The text"
        if isinstance(source, Path):
            text, where = _written(source), f"The text in {source}"
        begin, end = VOCABULARY - 2, VOCABULARY - 1
        ids = _tokenizer()(str(text))
        if len(ids) > self.length - 2:
            warnings.warn(
                f"{where} ({str(text)[:30]!r} ...) has {len(ids)} tokens, and the encoder reads {self.length - 2}: "
                "what comes after them is left out.",
                TruncationWarning,
                stacklevel=2,
            )
            ids = ids[: self.length - 2]
        tokens = torch.zeros(1, self.length, dtype=torch.int64)
        tokens[0, : len(ids) + 2] = torch.tensor([begin, *ids, end])
        return tokens

    def sample(self, source: str | Path, generator: torch.Generator) -> Tensor:
        """[length] int64: `read` without its first dimension; nothing is random."""
        return self.read(source)[0]


@functools.cache
def _tokenizer() -> Callable[[str], list[int]]:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError:
        raise VitrailError("CLIP's tokens need open_clip; install it with: pip install 'vitrail[bind]'") from None
    return SimpleTokenizer().encode


def _written(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CorruptSample(path, "it is not text in UTF-8") from None
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}; check the path.") from None
    if not text.strip():
        raise CorruptSample(path, "it holds no text")
    return text
