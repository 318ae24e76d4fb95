"""Clips of video files: which frames they have, whatever the container, the frame rate and the damage."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vitrail.data import video
from vitrail.data.audio import open_sound
from vitrail.data.corrupt import CorruptSample
from vitrail.data.video import open_video, read_tracks

av = pytest.importorskip("av")

SHARED = Path(__file__).parents[2].parent / "shared"
SIDES = (48, 64)  # height, width


def picture(number):
    """A grey that tells the frame's number, darker in the upper left corner."""
    values = np.full((*SIDES, 3), 16 + 2 * number, np.uint8)
    values[:12, :16] = 0
    return values


def write(path, times, sound=False, scale=1, **options):
    """A video whose frames appear at `times`, in milliseconds; `options` are the container's."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("ffv1" if path.suffix == ".avi" else "libx264", rate=25)
        stream.height, stream.width = (scale * side for side in SIDES)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 12
        stream.options = {"qp": "1"}
        track = container.add_stream("aac", rate=16_000) if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
            silence.rate = 16_000
            container.mux(track.encode(silence))
            container.mux(track.encode(None))
    return path


def numbers(found):
    """Which frames were found, told by their greys, which lose up to 1 on their way: {clip: (first, last)}."""
    greys = {clip.number: clip.frames[:, 24:, 32:].mean(axis=(1, 2, 3)) for clip in found}
    return {number: tuple(np.ceil((ends - 16) / 2 - 0.25).astype(int).tolist()) for number, ends in greys.items()}


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi", ".mov"])
def test_clips_have_the_first_and_the_last_of_their_frames(tmp_path, suffix):
    found = open_video(write(tmp_path / f"a{suffix}", range(0, 4000, 40)))
    assert found.duration == pytest.approx(4, abs=0.05)
    made = numbers(found.clips([2.0, 0.0, 0.52], 1.0))
    assert list(made) == [1, 2, 0]  # as they come
    assert made == {0: (50, 74), 1: (0, 24), 2: (13, 37)}


def test_far_clips_are_jumped_to(tmp_path, monkeypatch):
    found = open_video(write(tmp_path / "a.mp4", range(0, 4000, 40)))
    near = numbers(found.clips([0.0, 3.2], 0.4))
    monkeypatch.setattr(video, "_JUMP", 0.5)
    assert numbers(found.clips([0.0, 3.2], 0.4)) == near == {0: (0, 9), 1: (80, 89)}


def test_frames_count_by_their_time(tmp_path):
    times = [0, 10, 20, 500, 1500, 1510, 1900, 3900]
    found = open_video(write(tmp_path / "a.mkv", times))
    assert numbers(found.clips([0.0, 0.6, 1.5, 2.0, 3.0], 0.5)) == {
        0: (0, 2),
        1: (3, 3),  # none appears: what stands on the screen
        2: (4, 6),
        3: (6, 6),
        4: (6, 6),
    }
    assert numbers(found.clips([7.0], 0.5)) == {0: (7, 7)}


@pytest.mark.parametrize(
    ("suffix", "begin", "options"),
    [
        (".mkv", 3_600_000, {}),  # a clock that has run for an hour
        (".mkv", 0, {"options": {"live": "1"}}),  # neither length nor table of contents
        (".m4v", 0, {"format": "h264"}),  # not even times
    ],
)
def test_lengths_that_files_do_not_say(tmp_path, suffix, begin, options):
    found = open_video(write(tmp_path / f"a{suffix}", range(begin, begin + 4000, 40), **options))
    assert found.duration == pytest.approx(4, abs=0.05)
    assert numbers(found.clips([0.0, 3.0], 0.96)) == {0: (0, 23), 1: (75, 98)}


def test_longer_sound_does_not_count(tmp_path):
    assert open_video(write(tmp_path / "a.mkv", range(0, 400, 40), sound=True)).duration == pytest.approx(0.4, abs=0.01)


def test_titles_need_not_be_utf_8(tmp_path):
    path = write(tmp_path / "a.mkv", range(0, 400, 40), sound=True)
    with av.open(str(path)) as container:
        encoder = container.metadata["ENCODER"].encode()
    path.write_bytes(path.read_bytes().replace(encoder, b"\xe9" * len(encoder)))
    found = open_video(path)
    assert numbers(found.clips([0.0], 0.4)) == {0: (0, 9)}
    assert open_sound(path).samples(0, 16_000).shape == (16_000,)


def test_one_frame(tmp_path):
    found = open_video(write(tmp_path / "a.mkv", [0]))
    assert numbers(found.clips([0.0, 0.0], 2.0)) == {0: (0, 0), 1: (0, 0)}


def test_sound_is_seen(tmp_path):
    assert read_tracks(write(tmp_path / "a.mp4", range(0, 1000, 40), sound=True)) == (True, True)
    assert read_tracks(write(tmp_path / "b.mp4", range(0, 1000, 40))) == (True, False)


@pytest.mark.parametrize(("quarters", "corner"), [(1, "lower left"), (2, "lower right"), (3, "upper right")])
def test_frames_are_turned_upright(tmp_path, quarters, corner):
    """As a telephone writes it: a matrix in the track's header says how the frames are to be turned."""
    path = write(tmp_path / "a.mp4", range(0, 400, 40))
    one, zero, minus = (value.to_bytes(4, "big", signed=True) for value in (0x10000, 0, -0x10000))
    turns = {1: (zero, minus, one, zero), 2: (minus, zero, zero, minus), 3: (zero, one, minus, zero)}
    a, b, c, d = turns[quarters]
    data = path.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    depth = (0x40000000).to_bytes(4, "big")
    path.write_bytes(data[:place] + a + b + zero + c + d + zero + zero + zero + depth + data[place + 36 :])
    (clip,) = open_video(path).clips([0.0], 0.4)
    frame = clip.frames[0].mean(axis=2)
    assert frame.shape == (SIDES if quarters == 2 else SIDES[::-1])
    corners = {"upper left": frame[:8, :8], "upper right": frame[:8, -8:]}
    corners |= {"lower left": frame[-8:, :8], "lower right": frame[-8:, -8:]}
    assert min(corners, key=lambda name: corners[name].mean()) == corner


def test_frames_may_change_in_size_on_the_way(tmp_path):
    small = write(tmp_path / "a.ts", range(0, 400, 40))
    large = write(tmp_path / "b.ts", range(400, 1200, 40), scale=2)
    small.write_bytes(small.read_bytes() + large.read_bytes())
    first, last = open_video(small).clips([0.0, 0.8], 0.8)
    assert first.frames.shape[1:3] == SIDES and last.frames.shape[1:3] == (2 * SIDES[0], 2 * SIDES[1])
    assert numbers([first])[0][0] == 0


def test_a_damaged_end_is_left_out(tmp_path):
    path = write(tmp_path / "a.mkv", range(0, 4000, 40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = numbers(open_video(path).clips([0.0, 3.5], 0.5))
    assert found[0] == (0, 12) and 30 < found[1][0] == found[1][1] < 60


def test_clips_of_an_end_that_is_missing_say_so(tmp_path):
    """The index stands in front and still tells of all frames."""
    path = write(tmp_path / "a.mp4", range(0, 4000, 40), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    opened = open_video(path)
    assert opened.duration == 4.0
    assert numbers(opened.clips([0.0], 0.5)) == {0: (0, 12)}
    with pytest.raises(CorruptSample, match=r"a\.mp4.* no frame can be decoded at 3\.5 of 4\.0 seconds"):
        list(opened.clips([0.0, 3.5], 0.5))
    assert numbers(opened.clips([0.0, 4.0], 0.5))[0] == (0, 12)  # the last frame, behind the end


def test_a_frame_may_be_shown_for_long(tmp_path):
    path = write(tmp_path / "a.mp4", [0, 5000, 12_000])
    assert numbers(open_video(path).clips([4.0, 11.0], 0.5)) == {0: (0, 0), 1: (1, 1)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        (b"", "it is empty"),
        (b"no video at all" * 99, "it is damaged, or no video that FFmpeg can read"),
    ],
)
def test_what_is_no_video_says_so(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptSample) as error:
        open_video(path)
    assert error.value.reason == reason


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as container:
        track = container.add_stream("pcm_s16le", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.rate = 16_000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    with pytest.raises(CorruptSample, match="it has no pictures"):
        open_video(path)
    assert read_tracks(path) == (False, True)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the real data are not beside the repository")
def test_real_videos():
    paths = sorted((SHARED / "data" / "clips").glob("*.mp4"))
    found = [open_video(path) for path in paths]
    assert [read_tracks(one.path).sound for one in found] == [not one.path.name.startswith("silent") for one in found]
    for one in found:
        assert 5 < one.duration < 11
        first, last = one.clips([0.0, one.duration - 2], 2.0)
        assert first.frames.shape == last.frames.shape and first.frames.dtype == np.uint8
        assert not np.array_equal(first.frames[0], first.frames[1])
