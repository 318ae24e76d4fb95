"""Video files to the frames at the ends of clips.

Only what the clips need is decoded, from the key frame before each, and few frames are in memory at a time, so that
files may last for hours.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.corrupt import CorruptSample, check_holds_data
from vitrail.data.ffmpeg import load_av, open_container

SUFFIXES = frozenset(
    {
        *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    }
)
"""Of video files."""

_MISSING = 1.0  # seconds without a frame at the end of a file, though it says that there are some: more is damage
_JUMP = 4.0  # seconds without a clip that are decoded rather than jumped over: key frames lie about as far apart


class Tracks(NamedTuple):
    """What a video file has: some have sound alone."""

    pictures: bool
    sound: bool


class Clip(NamedTuple):
    """The first and the last frame of a clip.

    Attributes:
        number: of the clip, among those that were asked for.
        frames: [2, H, W, 3] uint8 RGB, upright, of the size of the first.
    """

    number: int
    frames: np.ndarray


@dataclass(frozen=True)
class Video:
    """A video file, not yet decoded.

    Attributes:
        path: the file.
        duration: seconds from the first frame to the end of the last: as its track says, or else as its packets do.
    """

    path: Path
    duration: float

    def clips(self, starts: Sequence[float], seconds: float) -> Iterator[Clip]:
        """The frames at both ends of clips, each as soon as it is decoded.

        A clip has the frames that appear from its start until before its end, whatever their rate. Where none does, it
        has the one that stands on the screen; behind the file's end, the last one.

        Args:
            starts: seconds, in any order.
            seconds: of a clip.

        Yields:
            The clips, in order of start.

        Raises:
            CorruptSample: the file is damaged where a clip begins, or has become unreadable since it was opened.
        """
        order = sorted(range(len(starts)), key=starts.__getitem__)
        av = load_av("Video")
        try:
            with open_container(av, self.path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                while order:
                    together = [order.pop(0)]  # decoded in one go
                    while order and starts[order[0]] < starts[together[-1]] + seconds + _JUMP:
                        together.append(order.pop(0))
                    frames = _frames(av, container, stream, starts[together[0]])
                    wanted = [(one, starts[one]) for one in together]
                    for number, first, last in _ends(frames, wanted, seconds, self.duration):
                        if first is None:
                            where = f"at {starts[number]:.1f} of {self.duration:.1f} seconds"
                            raise CorruptSample(self.path, f"no frame can be decoded {where}")
                        size = first.width, first.height  # broadcasts change theirs on the way
                        yield Clip(number, np.stack([_upright(frame, *size) for frame in (first, last)]))
        except av.FFmpegError as error:
            raise CorruptSample(self.path, f"it is damaged ({error.strerror})") from None


def open_video(path: str | Path) -> Video:
    """A video file of any format that FFmpeg reads.

    Raises:
        CorruptSample: there is no such file, it has no pictures, or cannot be read.
        VitrailError: the package that reads video is missing.
    """
    path = Path(path)
    with _opened(path) as (av, container):
        if not container.streams.video:
            raise CorruptSample(path, "it has no pictures")
        return Video(path, _duration(av, container, container.streams.video[0]))


def read_tracks(path: str | Path) -> Tracks:
    """Of a file of any format that FFmpeg reads, without decoding anything.

    Raises:
        CorruptSample: there is no such file, or it cannot be read.
        VitrailError: the package that reads video is missing.
    """
    with _opened(Path(path)) as (_, container):
        return Tracks(bool(container.streams.video), bool(container.streams.audio))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The package that reads video, and the file's container."""
    check_holds_data(path)
    av = load_av("Video")
    try:
        with open_container(av, path) as container:
            yield av, container
    except av.FFmpegError:
        raise CorruptSample(path, "it is damaged, or no video that FFmpeg can read") from None


def _duration(av: Any, container: Any, stream: Any) -> float:
    """Seconds that the pictures last; where their track does not say it, what is stored last is looked at, undecoded.

    What the container says cannot be taken for it: it may count the sound, or from when its clock was at zero.
    """
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    begin, base, step = stream.start_time or 0, float(stream.time_base), 1 / float(stream.average_rate or 25)
    near = [max(container.duration - 2 * av.time_base, 0)] if container.duration else []
    for place in [*near, None]:  # None: all of the file
        end, count = 0.0, 0
        try:
            if place is not None:
                container.seek(place)
            elif near:
                container.seek(begin, stream=stream)
            for packet in container.demux(stream):
                if packet.size:
                    count += 1
                    if packet.pts is not None:
                        shown = packet.duration * base if packet.duration else step
                        end = max(end, (packet.pts - begin) * base + shown)
        except av.FFmpegError:
            pass  # a damaged end is left out
        if end:
            return end
    return count * step  # streams without times


def _frames(av: Any, container: Any, stream: Any, start: float) -> Iterator[tuple[float, float, Any]]:
    """From and until when a frame is shown, and it; from the key frame before `start` on, without a damaged end."""
    begin = stream.start_time or 0
    base = float(stream.time_base)
    if start > 0:
        container.seek(begin + int(start / base), stream=stream)
    step = 1 / float(stream.average_rate or 25)
    time = -step  # so that the first frame is at 0 where streams have no times
    decoded = False
    try:
        for frame in container.decode(stream):
            time = time + step if frame.pts is None else (frame.pts - begin) * base
            decoded = True
            yield time, time + (frame.duration * base if frame.duration else step), frame
    except av.FFmpegError:
        if not decoded:
            raise


def _ends(
    frames: Iterator[tuple[float, float, Any]], clips: list[tuple[int, float]], seconds: float, duration: float
) -> Iterator[tuple[int, Any, Any]]:
    """Number, first and last frame of each of `clips`, numbers and starts in order of start; None where all is lost."""
    waiting: list[list[Any]] = [[number, start, None, None] for number, start in clips]
    shown, until = None, 0.0  # the frame before this one
    for time, end, frame in frames:
        while waiting and time >= waiting[0][1] + seconds:
            number, _, first, last = waiting.pop(0)
            first = first or shown or frame
            yield number, first, last or first
        if not waiting:
            return
        for clip in waiting:
            if time < clip[1]:
                break
            clip[2], clip[3] = clip[2] or frame, frame
        shown, until = frame, end
    for number, start, first, last in waiting:
        lost = until + _MISSING < start < duration
        yield number, None if lost else first or shown, last or shown


def _upright(frame: Any, width: int, height: int) -> np.ndarray:
    """[H, W, 3] uint8, turned as the file asks for; `width` and `height` are those before."""
    values = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(values, round(frame.rotation / 90) % 4)
