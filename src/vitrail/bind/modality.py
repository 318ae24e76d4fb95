"""What a sense is to the rest of the room: how its files become tensors, and its tensors vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrail.bind.spans import Span
from vitrail.config import check_choices, check_range
from vitrail.errors import VitrailError


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One sense: the sizes of its encoder, how its files are prepared, and both done.

    A subclass gives `name`, `build`, `read` and `sample`, and defaults that are those of the published model; one line
    in `vitrail.bind.modalities` makes it known. Its fields are stored in checkpoints.

    Raises:
        VitrailError: a field out of its range.
    """

    name: ClassVar[str]
    """What embeddings, indices and the command line call it."""
    suffixes: ClassVar[frozenset[str]] = frozenset()
    """Suffixes of the files that are of this sense where nobody says which, such as ".jpg"; empty: it is never guessed.
    """
    templates: ClassVar[tuple[str, ...]] = ("{}",)
    """Prompts that classes are put into for zero-shot classification of this sense (Section 6.3.1)."""

    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Blocks of attention and feed-forward."""
    heads: int = 12
    """Heads of the attention."""
    drop_path: float = 0.0
    """Stochastic depth: the rate in the last block, rising linearly from 0 in the first."""
    dropout: float = 0.0
    """Rate of dropout before the head."""
    head_width: int | None = None
    """Hidden width of a head of two layers with a GELU between (768 in Table 6.6b); None: a linear head."""
    norm_epsilon: float = 1e-6
    """Added to the variance in the transformer's LayerNorms; CLIP's and OpenCLIP's were trained with 1e-5."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """In the feed-forward; quick_gelu, x sigmoid(1.702 x), is that of CLIP's own weights."""
    temperature: float | None = 0.07
    """tau of the contrastive loss (Equation 6.1), where it starts if it is learned; None: vectors are never scaled."""
    learned_temperature: bool = False
    """Whether tau is learned, on a logarithmic scale, rather than fixed; 1 / tau stays at 100 or below."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "width", "depth", "heads", "head_width", least=1)
        check_range(self, "drop_path", "dropout", least=0, below=1)
        check_range(self, "norm_epsilon", above=0)
        check_range(self, "temperature", least=0.01)
        if self.width % self.heads:
            raise VitrailError(
                f"{self.width} channels of {self.name} cannot be shared out among {self.heads} heads; "
                "make width a multiple of heads."
            )
        if self.learned_temperature and self.temperature is None:
            raise VitrailError(f"The temperature of {self.name} has no value to learn from; set temperature, say 0.07.")

    def build(self, dimension: int) -> nn.Module:
        """The encoder with fresh weights: prepared inputs [B, ...] -> vectors [B, dimension], of any length.

        As `vitrail.bind.encoder.Encoder`, it tells by `accepts(shape)` which inputs it takes.
        """
        raise NotImplementedError

    def read(self, source: str | Path) -> Tensor:
        """One file (of text: a string), prepared for the encoder as in evaluation.

        Returns:
            [S, ...] float32 (text: int64), its S clips or views; S = 1 for a picture.

        Raises:
            FileError: there is no such file, or it is none of this sense.
            CorruptSample: it is damaged.
        """
        raise NotImplementedError

    def read_part(self, source: str | Path, part: Span) -> Tensor:
        """A part of a recording, as `read` gives all of it; what does not last, as pictures, is read as ever.

        Args:
            source: the file.
            part: start and length in seconds; an infinite length: to the end. As in training, a part shorter than the
                encoder's window goes on beyond its end.

        Raises:
            FileError, CorruptSample: as `read`; or the part begins after the end.
        """
        return self.read(source)

    def parts(self, source: str | Path) -> Iterator[tuple[Span | None, Tensor]]:
        """What `read` gives, part by part, so that little of a long recording is in memory at a time.

        Yields:
            The span of a part, None for all of the file, and its clips or views [V, ...].

        Raises:
            FileError, CorruptSample: as `read`.
        """
        yield None, self.read(source)

    def sample(self, source: str | Path, generator: torch.Generator) -> Tensor:
        """One training input [...], augmented at random: a random clip, crop, mask.

        Senses that see take a `crop` besides, and senses that last a `start`, which pairs of them share: see
        `vitrail.bind.training.pairs.PairTable`.

        Raises:
            FileError, CorruptSample: as `read`.
        """
        raise NotImplementedError
