"""Grids of indices to and from a stream, stage after stage, as probable as the prior says (Section 5.3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.compress.coding.coder import Decoder, Encoder
from vitrail.compress.coding.frequencies import BLOCK, Integers, choose_offset, frequencies, levels
from vitrail.compress.prior import InferencePrior
from vitrail.compress.stages import Scheme, evenly_spread, most_confident

EARLY_CHECK, LAST_CHECK = 1, 3  # bytes; an error in one stage makes all later checks fail too
CHECKED_SHARE = 32  # a check follows each stage after which 1/32 of all positions is new; 32 at most


@dataclass
class Grid:
    """The state that encoder and decoder go through alike."""

    indices: Integers
    """[h, w, m], of the first m sub-vectors."""
    known: NDArray[np.bool_]
    """[h, w], which of them have been coded."""


class GridCoder:
    """Codes grids with one prior.

    Args:
        prior: in float64, so that its logits differ between machines by less than the margin of their offsets.
        marginals: [M, V] integer frequencies of the first stage (`vitrail.compress.coding.frequencies.normalize`).
    """

    def __init__(self, prior: InferencePrior, marginals: Integers) -> None:
        self.prior = prior
        self.marginals = marginals

    def complete(self, grid: Grid) -> None:
        """Fills in what is not known with the prior's most probable guess (Section 5.4.3); `grid.known` stays."""
        missing = np.flatnonzero(~grid.known)
        if not len(missing):
            return
        quality = grid.indices.shape[2]
        context = self._context(grid)
        for block in self._blocks(quality, len(missing)):
            likely = self._logits(context, missing[block], quality).argmax(axis=-1)
            grid.indices.reshape(-1, quality)[missing[block]] = likely

    def stages(self, stream: Encoder | Decoder, scheme: Scheme, grid: Grid) -> Iterator[tuple[int, bool]]:
        """Codes stage after stage; yields the number of each, and whether a check has confirmed it and those before.

        Encoding, `grid.indices` are given; decoding, they are filled in. `grid.known` tells how far.
        """
        height, width, quality = grid.indices.shape
        counts = scheme.counts(height, width)
        order = None if scheme.adaptive else scheme.partition(height, width).flatten().sort(stable=True).indices.numpy()
        indices, known = grid.indices.reshape(-1, quality), grid.known.reshape(-1)
        end = unchecked = 0
        for stage, count in enumerate(counts):
            begin, end = end, end + count
            if stage == 0:
                chosen = evenly_spread(len(known), count).numpy() if order is None else order[:count]
                for part, table in enumerate(self.marginals[:quality]):
                    indices[chosen, part] = stream.symbols(indices[chosen, part], table)
                known[chosen] = True
            elif count:
                context = self._context(grid)
                if order is None:
                    parts = self._most_confident(stream, context, np.flatnonzero(~known), quality, count)
                else:
                    parts = self._in_order(stream, context, order[begin:end], quality)
                for chosen, below in parts:
                    tables = frequencies(below).reshape(-1, below.shape[-1])
                    indices[chosen] = stream.symbols(indices[chosen].reshape(-1), tables).reshape(-1, quality)
                    known[chosen] = True
            unchecked += count
            if unchecked and (end == len(known) or unchecked * CHECKED_SHARE >= len(known)):
                stream.check(LAST_CHECK if end == len(known) else EARLY_CHECK)
                unchecked = 0
            yield stage, unchecked == 0

    def _in_order(
        self, stream: Encoder | Decoder, context: Tensor, positions: Integers, quality: int
    ) -> Iterator[tuple[Integers, NDArray[np.int16]]]:
        """Blocks of the positions with their rounded logits, [n, m, V], for each an offset of the stream."""
        for block in self._blocks(quality, len(positions)):
            logits = self._logits(context, positions[block], quality)
            yield positions[block], levels(logits, self._offset(stream, logits))

    def _most_confident(
        self, stream: Encoder | Decoder, context: Tensor, positions: Integers, quality: int, count: int
    ) -> Iterator[tuple[Integers, NDArray[np.int16]]]:
        """The `count` positions of the greatest probabilities, summed over the sub-vectors, and rounded logits.

        Every block of positions has its offset; those chosen keep it. Their logits are computed again, for all of them
        together would be too many to hold: what differs is within the margin, as between machines.
        """
        confidence, offsets = [], []
        for block in self._blocks(quality, len(positions)):
            logits = self._logits(context, positions[block], quality)
            offsets.append(self._offset(stream, logits))
            confidence.append(frequencies(levels(logits, offsets[-1])).max(axis=-1).sum(axis=-1))
        chosen = np.zeros(len(positions), dtype=bool)
        chosen[most_confident(torch.from_numpy(np.concatenate(confidence)), count).numpy()] = True
        for block, offset in zip(self._blocks(quality, len(positions)), offsets, strict=True):
            picked = positions[block][chosen[block]]
            yield picked, levels(self._logits(context, picked, quality), offset)

    @staticmethod
    def _offset(stream: Encoder | Decoder, logits: NDArray[np.float64]) -> int:
        return stream.offset(choose_offset(logits) if isinstance(stream, Encoder) else 0)

    @torch.no_grad()
    def _context(self, grid: Grid) -> Tensor:
        """What the prior makes of the known indices, [h * w, d] float64."""
        device = next(self.prior.parameters()).device
        indices, known = torch.from_numpy(grid.indices), torch.from_numpy(grid.known)
        # The encoder knows all indices, the decoder only some: what the prior must not see, it is not given.
        hidden = torch.where(known[..., None], indices, 0)
        return self.prior.context(hidden[None].to(device), known[None].to(device))[0].flatten(0, 1)

    @torch.no_grad()
    def _logits(self, context: Tensor, positions: Integers, quality: int) -> NDArray[np.float64]:
        """[n, m, V] of some positions."""
        taken = context[torch.from_numpy(positions).to(context.device)]
        logits = self.prior.logits(taken, quality).cpu()
        if logits.dtype != torch.float64:
            raise TypeError(f"the prior computes in {logits.dtype}: its files would not decode on other machines")
        return logits.numpy()

    def _blocks(self, quality: int, positions: int) -> Iterator[slice]:
        """Slices of some positions, as many each as have `BLOCK` logits together."""
        size = max(1, BLOCK // (quality * self.marginals.shape[1]))
        return (slice(begin, begin + size) for begin in range(0, positions, size))
