"""Pairs of files of two senses, from a table or from tars, as training samples (Section 6.4.5)."""

import inspect
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.bind.augmentation import Crop
from vitrail.bind.grey import picture_size
from vitrail.bind.modality import Modality
from vitrail.bind.spans import check_span, known_span
from vitrail.bind.training.rows import Rows, Senses, Sources, TableRows, TarRows
from vitrail.errors import VitrailError


class Pair(NamedTuple):
    """A sample, prepared for the encoders of two senses, or a batch of them, as `default_collate` makes it.

    Attributes:
        first: [...] or [B, ...].
        second: the same of the other sense.
    """

    first: Tensor
    second: Tensor


class PairTable:
    """A data set of pairs: a table (CSV or Parquet) with a column for each of two senses, or tars with a file for each.

    A column holds paths, relative to the table, or for text the texts themselves. Columns `start` and `seconds`, if
    there are any, say which part of the recordings belongs together, and columns such as `depth.sensor` and
    `depth.focal_length` say fields of a sense for the row; cells of them may be empty. Tars are WebDataset's: see
    `vitrail.bind.training.rows.TarRows`.

    Samples are aligned by what both senses take in `sample`: a `crop`, which is that of the first picture (for depth
    and heat, Table 6.6f), or a `start` in seconds, of both windows in the part or in the shorter recording (for sound
    and motion, Table 6.6h). Senses that take a `start` have `window`, the seconds of a clip, and `duration(source)`.

    Random numbers come from torch's global generator, which the loader seeds sample by sample.

    Args:
        table: the file; `.tar`, `pairs-{000..127}.tar` or `pairs-*.tar` of tars.
        first: a sense, as a rule images.
        second: the other.
        columns: of the table, None: the senses' names; of tars, suffixes of the members, None: those of the senses.
        aligned: False draws crops and starts independently for the ablation; a `start` of the table still counts.
        replication: how often each pair comes in an epoch (Table 6.5); of 1.25, the first quarter comes twice.

    Raises:
        FileError: the table or a tar cannot be read, is empty, or lacks a column, a cell or a member.
        VitrailError: `replication` leaves nothing.
    """

    def __init__(
        self,
        table: str | Path,
        first: Modality,
        second: Modality,
        *,
        columns: tuple[str, str] | None = None,
        aligned: bool = True,
        replication: float = 1.0,
    ) -> None:
        self.table = Path(table)
        self.modalities = (first, second)
        self.aligned = aligned
        rows = TarRows if self.table.suffix == ".tar" else TableRows
        self._rows: Rows = rows(self.table, self.modalities, columns)
        self._length = round(len(self._rows.times) * replication)
        if self._length < 1:
            raise VitrailError(f"A replication of {replication:g} leaves nothing of {table}; choose a greater one.")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Pair:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        with self.opened(number) as sources:
            options = self._options(sources, self._row(number), generator)
            samples = [
                modality.sample(source, generator, **chosen)
                for modality, source, chosen in zip(self.senses(number), sources, options, strict=True)
            ]
        return Pair(*samples)

    def opened(self, number: int) -> AbstractContextManager[Sources]:
        """A context in which the files, or texts, of a sample can be read, both its value."""
        return self._rows.opened(self._row(number))

    def senses(self, number: int) -> Senses:
        """The senses, with the fields that the row says."""
        return self._rows.settings[self._row(number)]

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """A sample as in an evaluation, of the parts of the recordings that belong together: its clips or views.

        Returns:
            [S, ...] of each sense.

        Raises:
            FileError, CorruptSample: a file cannot be read.
        """
        span = known_span(*self._rows.times[self._row(number)])
        with self.opened(number) as sources:
            first, second = (
                modality.read(source) if span is None else modality.read_part(source, span)
                for modality, source in zip(self.senses(number), sources, strict=True)
            )
        return first, second

    def _row(self, number: int) -> int:
        return range(self._length)[number] % len(self._rows.times)

    def _options(self, sources: Sources, row: int, generator: torch.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `sample` of each sense is told."""
        modalities = self._rows.settings[row]
        first, second = (_parameters(modality) for modality in modalities)
        options: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        if self.aligned and "crop" in first & second:
            own = {name: getattr(modalities[0], name) for name in ("scale", "flip") if hasattr(modalities[0], name)}
            crop = Crop.random(*picture_size(sources[0]), generator, **own)
            for one in options:
                one["crop"] = crop
        timed = [side for side, known in enumerate((first, second)) if "start" in known]
        begin, seconds = self._rows.times[row]
        if not math.isnan(begin) or (self.aligned and len(timed) == 2):
            begin = 0.0 if math.isnan(begin) else float(begin)
            senses: list[Any] = [modalities[side] for side in timed]
            ends = [sense.duration(sources[side]) for side, sense in zip(timed, senses, strict=True)]
            for side, end in zip(timed, ends, strict=True):
                check_span(sources[side], (begin, 0.0), end)
            left = min(ends, default=begin) - begin
            seconds = left if math.isnan(seconds) else min(seconds, left)
            together = _within(begin, seconds, max((sense.window for sense in senses), default=0.0), generator)
            for side, sense in zip(timed, senses, strict=True):
                alone = _within(begin, seconds, sense.window, generator)
                options[side]["start"] = together if self.aligned else alone
        return options


def _parameters(modality: Modality) -> frozenset[str]:
    return frozenset(inspect.signature(modality.sample).parameters)


def _within(begin: float, seconds: float, window: float, generator: torch.Generator) -> float:
    """Where a window of a part begins, at random."""
    return begin + max(0.0, float(seconds) - window) * float(torch.rand((), generator=generator))
