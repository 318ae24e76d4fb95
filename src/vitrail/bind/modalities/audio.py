"""Sound: clips of 2 s as log-mel spectrograms (Section 6.3.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vitrail.bind.encoder import Encoder, patch_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.prompts import IMAGENET_TEMPLATES
from vitrail.bind.spans import Span, check_span
from vitrail.config import check_range
from vitrail.data.audio import RATE, Channels, Sound, clip_starts, log_mel, open_sound

BINS = 128
FRAMES = 204
"""Of a spectrogram; a clip of 2 s has 198, and zeros follow."""
MEAN, STD = -4.268, 9.138
_TOGETHER = 16  # clips that are read at a time


@dataclass(frozen=True, kw_only=True)
class Audio(Modality):
    """Sound files, and the sound tracks of videos, of any length and rate: spectrograms [1, 128, 204]."""

    name: ClassVar[str] = "audio"
    window: ClassVar[float] = 2.0
    """Seconds that the encoder takes."""
    suffixes: ClassVar[frozenset[str]] = frozenset(
        {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"}
    )
    templates: ClassVar[tuple[str, ...]] = IMAGENET_TEMPLATES

    drop_path: float = 0.1
    temperature: float | None = 0.05
    clips: int | Literal["cover"] = 3
    """Clips of a file, evenly spread: a number, or "cover", as many as leave nothing out (Section 6.3.3.1)."""
    padding: Literal["zeros", "repeat"] = "zeros"
    """What follows a sound shorter than 2 s: zeros in its spectrogram, as in the published code, or itself again."""
    shape: Literal["hann", "hamming"] = "hann"
    """Window of a frame: the published code's, or the thesis's."""
    channels: Channels = "first"
    """Of stereo: the first channel, as in the published code, or the mean."""
    frequency_mask: int = 12
    """Most neighbouring bins that are masked in training (Table 6.5); 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clips != "cover":
            check_range(self, "clips", least=1)
        check_range(self, "frequency_mask", least=0, most=BINS)

    def build(self, dimension: int) -> Encoder:
        """[B, 1, 128, 204] -> [B, dimension]."""
        return patch_encoder(self, dimension, channels=1, kernel_size=16, stride=10, size=(BINS, FRAMES))

    def read(self, source: str | Path) -> Tensor:
        """Clips of a file, evenly spread.

        Returns:
            [S, 1, 128, 204] float32.

        Raises:
            CorruptSample: there is no such file, it is damaged, or has no sound.
        """
        return torch.cat([clip for _, clip in self.parts(source)])

    def read_part(self, source: str | Path, part: Span) -> Tensor:
        """Clips of a part of a file: see `Modality.read_part`."""
        sound = open_sound(source)
        check_span(source, part, sound.duration)
        starts = clip_starts(sound.duration, self.window, self.clips, part)
        return torch.cat([clip for _, clip in self._clips(sound, starts)])

    def parts(self, source: str | Path) -> Iterator[tuple[Span, Tensor]]:
        """The clips one by one: see `Modality.parts`."""
        sound = open_sound(source)
        return self._clips(sound, clip_starts(sound.duration, self.window, self.clips))

    def _clips(self, sound: Sound, starts: Sequence[float]) -> Iterator[tuple[Span, Tensor]]:
        for number in range(0, len(starts), _TOGETHER):
            some = starts[number : number + _TOGETHER]
            waveforms = sound.read_spans(some, self.window, channels=self.channels)
            for start, waveform in zip(some, waveforms, strict=True):
                yield (start, min(self.window, sound.duration - start)), self._spectrogram(waveform)[None]

    def duration(self, source: str | Path) -> float:
        """Seconds that a file lasts.

        Raises:
            CorruptSample: as `read`.
        """
        return open_sound(source).duration

    def sample(self, source: str | Path, generator: torch.Generator, start: float | None = None) -> Tensor:
        """A clip of a file, some neighbouring frequencies masked.

        Args:
            source: the file.
            generator: of what is random.
            start: seconds where the clip begins, that of the video (aligned, Table 6.6h); None: anywhere.

        Returns:
            [1, 128, 204] float32.

        Raises:
            CorruptSample: as `read`.
        """
        sound = open_sound(source)
        last = max(sound.duration - self.window, 0)
        anywhere, height, place = torch.rand(3, generator=generator).tolist()
        start = last * anywhere if start is None else min(max(start, 0), last)
        spectrogram = self._spectrogram(sound.read(start, self.window, channels=self.channels))
        bins = int(height * (self.frequency_mask + 1))
        first = int(place * (BINS - bins + 1))
        spectrogram[:, first : first + bins] = 0
        return spectrogram

    def _spectrogram(self, waveform: Tensor) -> Tensor:
        """[n] at 16 kHz, at most one clip -> [1, 128, 204]."""
        length = int(RATE * self.window)
        if self.padding == "repeat" and len(waveform) < length:
            waveform = waveform.repeat(-(-length // len(waveform)))[:length]
        found = log_mel(waveform, BINS, self.shape)
        return torch.nn.functional.pad(found, (0, FRAMES - found.shape[1]))[None].sub_(MEAN).div_(STD)
