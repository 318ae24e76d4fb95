"""Sound files to waveforms at the rate of one's choice, to clips, and to log-mel spectrograms.

Only the span that is asked for is read and resampled, so that files may last for hours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.data.corrupt import CorruptSample, check_holds_data
from vitrail.data.ffmpeg import load_av, open_container
from vitrail.errors import VitrailError

RATE = 16_000
"""Samples a second that spectrograms are made of."""

Channels = Literal["first", "mean"]

_FASTEST = 10_000_000  # samples a second; more is damage, and would take hours to resample
_LEAD = 8 * 1152  # samples that are decoded ahead: after a jump, an MP3's first frames lack what was before them
_RESULTS = 32  # of resampling, that are computed together
_LONGEST_BLOCK = 640  # samples at the new rate: 11025 to 16000 Hz are 441 to 640
_JUMP = 2.0  # seconds between spans that are decoded rather than jumped over


@dataclass(frozen=True)
class Sound:
    """A sound file, or the sound track of a video, not yet decoded.

    Attributes:
        path: the file.
        rate: samples a second.
        length: samples of a channel; where a file does not tell, they have been counted.
        decoder: what reads it.
    """

    path: Path
    rate: int
    length: int
    decoder: Literal["soundfile", "av"]

    @property
    def duration(self) -> float:
        """Seconds, rounded up to whole samples at 16 kHz, by which the published model's clips are spread."""
        return -(-self.length * RATE // self.rate) / RATE

    def samples(self, start: int, stop: int, channels: Channels = "first") -> Tensor:
        """Samples `start` up to `stop`, silence where the file has none.

        Args:
            start, stop: at the file's own rate; they may lie outside it.
            channels: the first channel, or the mean of all.

        Returns:
            [stop - start] float32, in -1..1.

        Raises:
            CorruptSample: the file is damaged, or has become unreadable since it was opened.
        """
        found = torch.zeros(max(stop - start, 0))
        first, last = max(start, 0), min(stop, self.length)
        if first < last:
            read = _read_soundfile if self.decoder == "soundfile" else _read_av
            part = torch.from_numpy(read(self, first, last, channels))
            if not part.isfinite().all():
                raise CorruptSample(self.path, "some of its samples are no finite numbers")
            found[first - start : first - start + len(part)] = part
        return found

    def read(self, start: float, seconds: float, rate: int = RATE, channels: Channels = "first") -> Tensor:
        """A span at another rate: the same numbers as if the whole file were resampled and then cut.

        Args:
            start, seconds: of the span, which ends with the file if it reaches beyond.
            rate: samples a second of the result.
            channels: the first channel, or the mean of all.

        Returns:
            [n] float32; n = seconds * rate, or fewer at the file's end.

        Raises:
            CorruptSample: as `samples`.
        """
        first, last = self._place(start, seconds, rate)
        return self._resampled(first, last, rate, channels)

    def read_spans(
        self, starts: Sequence[float], seconds: float, rate: int = RATE, channels: Channels = "first"
    ) -> list[Tensor]:
        """Spans of one length, each as `read` gives it; what is close together is decoded and resampled in one go.

        Args:
            starts: seconds, in order.
            seconds, rate, channels: as for `read`.

        Raises:
            CorruptSample: as `samples`.
        """
        places = [self._place(start, seconds, rate) for start in starts]
        found: list[Tensor] = []
        while rest := places[len(found) :]:
            count, end = 1, rest[0][1]
            while count < len(rest) and rest[count][0] <= end + _JUMP * rate:
                end = max(end, rest[count][1])
                count += 1
            begin = rest[0][0]
            waveform = self._resampled(begin, end, rate, channels)
            found += [waveform[first - begin : last - begin] for first, last in rest[:count]]
        return found

    def _place(self, start: float, seconds: float, rate: int) -> tuple[int, int]:
        """First sample, and the one after the last, at another rate."""
        total = -(-self.length * rate // self.rate)
        return min(int(start * rate), total), min(int((start + seconds) * rate), total)

    def _resampled(self, first: int, last: int, rate: int, channels: Channels) -> Tensor:
        if self.rate == rate:
            return self.samples(first, last, channels)
        old, new = _ratio(self.rate, rate)
        block, end = first // new, -(-last // new)
        half = _half_width(old, new)
        waveform = self.samples(block * old - half, end * old + half, channels)
        return _resample_blocks(waveform, old, new)[first - block * new : last - block * new]


def open_sound(path: str | Path) -> Sound:
    """A sound file of any format that libsndfile or FFmpeg reads, or a video with a sound track.

    Raises:
        CorruptSample: there is no such file, it has no sound, or cannot be decoded.
        VitrailError: the package that reads sound is missing.
    """
    path = Path(path)
    check_holds_data(path)
    soundfile = _load_soundfile()
    try:
        info = soundfile.info(str(path))
        found = Sound(path, info.samplerate, info.frames, "soundfile")
    except soundfile.LibsndfileError:
        found = _open_av(path)
    if not found.length:
        raise CorruptSample(path, "it has no sound")
    if found.rate > _FASTEST:
        raise CorruptSample(path, f"it claims {found.rate} samples a second")
    return found


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """A waveform at another rate, by a sinc with a Hann window of 6 zero crossings, cut off at 0.99 of Nyquist.

    Args:
        waveform: [n].
        rate, new_rate: samples a second.

    Returns:
        [ceil(n * new_rate / rate)].
    """
    if rate == new_rate:
        return waveform
    old, new = _ratio(rate, new_rate)
    total, half = -(-len(waveform) * new_rate // rate), _half_width(old, new)
    blocks = -(-total // new)
    padded = torch.nn.functional.pad(waveform, (half, blocks * old + half - len(waveform)))
    return _resample_blocks(padded, old, new)[:total]


def log_mel(waveform: Tensor, bins: int = 128, window: Literal["hann", "hamming"] = "hann") -> Tensor:
    """Kaldi's log-mel filterbank of a waveform at 16 kHz (Section 6.3.3.1): frames of 25 ms, every 10 ms, no dither.

    The mean is removed from the waveform and again from each frame; differences to 0.97 of the sample before are
    taken; the power of 512 frequencies is summed by triangles on the mel scale, from 20 Hz to 8 kHz.

    Args:
        waveform: [n].
        bins: triangles.
        window: of a frame, symmetric.

    Returns:
        [bins, frames], natural logarithms; frames = 1 + floor((n - 400) / 160), none of less than 25 ms.
    """
    if len(waveform) < 400:
        return waveform.new_zeros(bins, 0)
    frames = (waveform - waveform.mean()).unfold(0, 400, 160)
    frames = frames - frames.mean(dim=1, keepdim=True)
    filled = waveform.new_zeros(len(frames), 512)
    emphasis = 0.97 * frames  # where a tone is far below the loudest, the order of roundings shows
    torch.sub(frames[:, 1:], emphasis[:, :-1], out=filled[:, 1:400])
    torch.sub(frames[:, 0], emphasis[:, 0], out=filled[:, 0])
    filled[:, :400] *= _window(window, waveform.dtype)
    spectrum = torch.fft.rfft(filled)
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    energies = torch.cat([power[:, low:high] @ part for low, high, part in _mel_parts(bins, waveform.dtype)], dim=1)
    return energies.clamp_(min=torch.finfo(torch.float32).eps).log_().T


@cache
def _window(name: Literal["hann", "hamming"], dtype: torch.dtype) -> Tensor:
    return (torch.hann_window if name == "hann" else torch.hamming_window)(400, periodic=False, dtype=dtype)


@cache
def _mel_parts(bins: int, dtype: torch.dtype) -> list[tuple[int, int, Tensor]]:
    """Neighbouring triangles together: the frequencies from, and up to, that they have weights of, and these [n, m]."""
    parts = []
    for triangles in mel_triangles(bins).split(16):
        (used,) = triangles.sum(dim=0).nonzero(as_tuple=True)
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        parts.append((low, high, triangles[:, low:high].T.to(dtype).contiguous()))
    return parts


@cache
def mel_triangles(bins: int) -> Tensor:
    """Weights of frequencies k * 31.25 Hz, k = 0..256, in triangles evenly spaced on the mel scale.

    Returns:
        [bins, 257] float64; row i rises from 0 at corner i to 1 at corner i + 1 and falls to 0 at corner i + 2.
    """
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (20, RATE / 2))
    corners = torch.linspace(low, high, bins + 2, dtype=torch.float64)[:, None]
    mel = 1127 * torch.log1p(torch.arange(257, dtype=torch.float64) * (RATE / 512) / 700)
    width = (high - low) / (bins + 1)
    weights = torch.minimum(mel - corners[:-2], corners[2:] - mel).div(width).clamp(min=0)
    weights[:, 256] = 0  # Kaldi leaves the highest frequency out
    return weights


def clip_starts(
    duration: float, clip: float, clips: int | Literal["cover"], part: tuple[float, float] = (0.0, math.inf)
) -> list[float]:
    """Where clips begin that are spread evenly over a file, the first at its start and the last up to its end.

    Args:
        duration, clip: seconds of the file and of a clip.
        clips: how many; "cover": ceil(duration / clip), which leave nothing out (Section 6.3.3.1).
        part: start and length in seconds of the part of the file that counts.

    Returns:
        Seconds; all the same where the file, or the part, is no longer than a clip. At the end of the file, a part that
        is shorter begins earlier, so that there is a whole clip.
    """
    begin, length = part[0], min(part[1], duration - part[0])
    count = max(math.ceil(length / clip - 1e-6), 1) if clips == "cover" else clips
    first, room = max(min(begin, duration - clip), 0), max(length - clip, 0)
    return [first + room * number / max(count - 1, 1) for number in range(count)]


def _load_soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise VitrailError("Sound is read with soundfile, which is missing; pip install 'vitrail[bind]'.") from None
    return soundfile


def _read_soundfile(sound: Sound, first: int, last: int, channels: Channels) -> np.ndarray:
    soundfile = _load_soundfile()
    try:
        with soundfile.SoundFile(str(sound.path)) as file:
            lead = min(first, _LEAD)
            file.seek(first - lead)
            values = file.read(lead + last - first, dtype="float32", always_2d=True)[lead:]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise CorruptSample(sound.path, f"it is damaged ({str(error).rstrip('.')})") from None
    return values.mean(axis=1) if channels == "mean" else values[:, 0].copy()


def _open_av(path: Path) -> Sound:
    """The track is decoded once, without keeping it: containers only estimate how long it is."""
    av = load_av("Sound")
    try:
        with open_container(av, path) as container:
            if not container.streams.audio:
                raise CorruptSample(path, "it has no sound")
            rate, length, begin = container.streams.audio[0].rate, 0, _begin(av, container)
            try:
                for frame in container.decode(audio=0):
                    length = max(length, _place(frame, length, rate, begin) + frame.samples)
            except av.FFmpegError:
                if not length:
                    raise  # a damaged end is left out, a file of which nothing can be read is not
    except av.FFmpegError:
        raise CorruptSample(path, "it is damaged, or no sound that FFmpeg can read") from None
    return Sound(path, rate, length, "av")


def _read_av(sound: Sound, first: int, last: int, channels: Channels) -> np.ndarray:
    av = load_av("Sound")
    values = np.zeros(last - first, np.float32)
    position = 0
    try:
        with open_container(av, sound.path) as container:
            stream, begin = container.streams.audio[0], _begin(av, container)
            if first > sound.rate:  # a second ahead, as decoders need frames before the first that is right
                container.seek(int((begin + first / sound.rate - 1) / stream.time_base), stream=stream)
            resampler = av.AudioResampler(format="fltp", rate=sound.rate)
            for coded in container.decode(stream):
                for frame in resampler.resample(coded):
                    position = _place(frame, position, sound.rate, begin)
                    data = frame.to_ndarray()
                    part = data.mean(axis=0) if channels == "mean" else data[0]
                    low, high = max(position, first), min(position + len(part), last)
                    if low < high:
                        values[low - first : high - first] = part[low - position : high - position]
                    position += len(part)
                if position >= last:
                    break
    except av.FFmpegError as error:
        if position <= first:
            raise CorruptSample(sound.path, f"it is damaged ({error.strerror})") from None
    return values


def _begin(av: Any, container: Any) -> float:
    """Seconds that the file's clock shows at its beginning: hours in recordings of broadcasts."""
    return float(max(container.start_time or 0, 0) / av.time_base)


def _place(frame: Any, expected: int, rate: int, begin: float) -> int:
    """The number of a frame's first sample, of times that some containers tell by milliseconds only."""
    if frame.pts is None:
        return expected
    told = max(round((float(frame.pts * frame.time_base) - begin) * rate), 0)
    return expected if abs(told - expected) <= math.ceil(frame.time_base * rate) else told


def _ratio(rate: int, new_rate: int) -> tuple[int, int]:
    """Two numbers of samples that last equally long, exactly for rates that are in use.

    Others, 48001 to 16000 for instance, would need blocks as long as a second, and matrices of gigabytes: theirs is
    the nearest ratio of short blocks, a few millionths off.
    """
    near = Fraction(rate, new_rate).limit_denominator(max(_LONGEST_BLOCK, -(-new_rate // rate)))
    return near.numerator, near.denominator


def _half_width(old: int, new: int) -> int:
    """Samples on either side of a block of `old` that reach into its results: 6 zero crossings of the sinc."""
    return math.ceil(6 * old / (min(old, new) * 0.99))


@cache
def _kernels(old: int, new: int, dtype: torch.dtype) -> list[tuple[int, Tensor]]:
    """The weights of a block's `old` samples, and of those around it, for each of its `new` results.

    Results that are neighbours need few of the samples: for some of them at a time, the first sample that they need,
    and the weights [n, m] of the n from there.
    """
    half = _half_width(old, new)
    cutoff = min(old, new) * 0.99
    times = torch.arange(-half, old + half, dtype=torch.float64) / old
    distance = cutoff * (times[:, None] - torch.arange(new, dtype=torch.float64) / new)
    hann = torch.cos(distance.clamp(-6, 6) * math.pi / 12).square()
    weights = torch.sinc(distance) * hann * (cutoff / old)
    near = distance.abs() < 6
    parts = []
    for first in range(0, new, _RESULTS):
        (used,) = near[:, first : first + _RESULTS].any(dim=1).nonzero(as_tuple=True)
        low, high = int(used[0]), int(used[-1]) + 1
        parts.append((low, weights[low:high, first : first + _RESULTS].to(dtype).contiguous()))
    return parts


def _resample_blocks(waveform: Tensor, old: int, new: int) -> Tensor:
    """Blocks of `old` samples, `_half_width` more at both ends, -> blocks of `new` samples."""
    blocks = (len(waveform) - 2 * _half_width(old, new)) // old
    if blocks < 1:
        return waveform.new_zeros(0)
    found = waveform.new_empty(blocks, new)
    for number, (low, weights) in enumerate(_kernels(old, new, waveform.dtype)):
        some = waveform.as_strided((blocks, len(weights)), (old, 1), waveform.storage_offset() + low)
        found[:, number * _RESULTS :][:, : weights.shape[1]] = some @ weights
    return found.flatten()
