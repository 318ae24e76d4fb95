import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from vitrail.data.audio import RATE, clip_starts, log_mel, mel_triangles, open_sound, resample
from vitrail.data.corrupt import CorruptSample

SHARED = Path(__file__).parents[2].parent / "shared"
PARITY = SHARED / "parity/imagebind"


def noise(length, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-0.5, 0.5, length)).float()


def write(path, waveform, rate):
    soundfile.write(path, waveform.numpy(), rate, subtype="FLOAT")
    return path


def test_log_mel_by_definition():
    waveform = noise(800).double()
    found = log_mel(waveform)
    assert found.shape == (128, 3)
    frame = (waveform - waveform.mean())[160:560].numpy()
    frame = frame - frame.mean()
    frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
    frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399))
    waves = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    power = np.abs(waves @ frame) ** 2
    corners = np.linspace(1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 8000 / 700), 130)
    for bin_ in (0, 1, 50, 127):
        energy = 0.0
        for k in range(256):
            mel = 1127 * math.log(1 + k * 31.25 / 700)
            left, centre, right = corners[bin_ : bin_ + 3]
            energy += power[k] * max(0.0, min((mel - left) / (centre - left), (right - mel) / (right - centre)))
        assert found[bin_, 1].item() == pytest.approx(math.log(max(energy, 2**-23)), abs=1e-9)


def test_silence_has_the_least_energy_and_short_sounds_have_no_frame():
    assert (log_mel(torch.zeros(400)) == math.log(2**-23)).all()
    assert log_mel(torch.zeros(399)).shape == (128, 0)
    assert mel_triangles(128).shape == (128, 257)


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (8000, 16000)])
def test_resampling_by_definition(rate, new_rate):
    waveform = noise(300).double()
    found = resample(waveform, rate, new_rate)
    assert len(found) == math.ceil(300 * new_rate / rate)
    cutoff = 0.99 * min(rate, new_rate)
    for n in (0, 7, len(found) // 2, len(found) - 1):
        distance = cutoff * (np.arange(300) / rate - n / new_rate)
        weights = np.sinc(distance) * np.cos(distance * np.pi / 12) ** 2 * (abs(distance) < 6) * cutoff / rate
        assert found[n].item() == pytest.approx(weights @ waveform.numpy(), abs=1e-12)


@pytest.mark.parametrize("rate", [11127, 48001, 95999])
def test_rates_of_no_short_ratio(tmp_path, rate):
    tone = torch.sin(2 * math.pi * 440 * torch.arange(rate) / rate)
    found = resample(tone, rate, RATE)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)
    assert len(found) == RATE
    assert (found - expected)[100:-100].abs().max() < 0.06  # 21 millionths of a second late at the end of it
    assert len(open_sound(write(tmp_path / "a.wav", tone, rate)).read(0, 1)) == RATE


def test_a_slow_rate():
    assert len(resample(noise(10), 10, RATE)) == RATE


def test_samples_that_are_no_numbers(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(100, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    with pytest.raises(CorruptSample, match="no finite numbers"):
        open_sound(path).read(0, 1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_spans_are_those_of_the_whole_file(tmp_path, rate):
    sound = open_sound(write(tmp_path / "a.wav", noise(rate), rate))
    assert sound.duration == 1
    whole = resample(noise(rate), rate, RATE)
    torch.testing.assert_close(sound.read(0, 2), whole)
    torch.testing.assert_close(sound.read(0.3, 0.25), whole[4800:8800])
    torch.testing.assert_close(sound.read(0.9, 2), whole[14400:])


def test_channels(tmp_path):
    stereo = torch.stack([noise(100), noise(100, 1)], dim=1)
    sound = open_sound(write(tmp_path / "a.wav", stereo, RATE))
    assert torch.equal(sound.read(0, 1), stereo[:, 0])
    torch.testing.assert_close(sound.read(0, 1, channels="mean"), stereo.mean(1))


def test_the_sound_track_of_a_video_keeps_its_time(tmp_path):
    av = pytest.importorskip("av")
    waveform = noise(3 * RATE)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((waveform * 32767).round().short().numpy()[None], "s16", "mono")
        frame.rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    sound = open_sound(tmp_path / "a.mkv")
    assert (sound.decoder, sound.duration) == ("av", 3)
    torch.testing.assert_close(sound.read(2.5, 0.25), waveform[40000:44000], rtol=0, atol=1e-4)
    torch.testing.assert_close(sound.read(0.5, 0.25), waveform[8000:12000], rtol=0, atol=1e-4)


def test_clocks_that_do_not_begin_at_zero(tmp_path):
    """As in recordings of broadcasts, whose clocks have run for hours."""
    av = pytest.importorskip("av")
    waveform = noise(3 * RATE)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for first in range(0, 3 * RATE, 1600):
            part = (waveform[first : first + 1600] * 32767).round().short().numpy()[None]
            frame = av.AudioFrame.from_ndarray(part, "s16", "mono")
            frame.rate, frame.pts, frame.time_base = RATE, 3600 * RATE + first, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    sound = open_sound(tmp_path / "a.mkv")
    assert sound.duration == 3
    for start in (0.5, 2.5):
        expected = waveform[int(start * RATE) : int(start * RATE) + 4000]
        torch.testing.assert_close(sound.read(start, 0.25), expected, rtol=0, atol=1e-4)


def test_clip_starts():
    assert clip_starts(5, 2, 3) == [0, 1.5, 3]
    assert clip_starts(0.5, 2, 3) == [0, 0, 0]
    assert clip_starts(5, 2, "cover") == [0, 1.5, 3]
    assert clip_starts(4, 2, "cover") == [0, 2]
    assert clip_starts(0.5, 2, "cover") == [0]


def test_bad_files(tmp_path):
    for name, content, reason in [("a.wav", b"", "empty"), ("b.wav", b"some words\n" * 9, "no sound that FFmpeg")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptSample, match=reason):
            open_sound(tmp_path / name)
    with pytest.raises(CorruptSample, match="no such file"):
        open_sound(tmp_path / "c.wav")
    soundfile.write(tmp_path / "fast.wav", np.zeros(100), 2**30)
    with pytest.raises(CorruptSample, match="it claims 1073741824 samples a second"):
        open_sound(tmp_path / "fast.wav")


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_spans_are_those_read_one_by_one(tmp_path, rate):
    sound = open_sound(write(tmp_path / "long.wav", noise(12 * rate), rate))
    starts = [0.0, 0.3, 1.0, 2.1, 7.77, 11.5]  # overlapping, close, far, and over the end
    reads = []
    original = type(sound).samples

    def samples(self, first, last, channels="first"):
        reads.append((first, last))
        return original(self, first, last, channels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sound), "samples", samples)
        spans = sound.read_spans(starts, 1.0)
    assert len(reads) == 3
    assert [len(span) for span in spans] == [RATE] * 5 + [RATE // 2]
    for start, span in zip(starts, spans, strict=True):
        torch.testing.assert_close(span, sound.read(start, 1.0), rtol=0, atol=1e-6)
    assert sound.read_spans([], 1.0) == []


def assert_same_energies(found, wanted, tolerance):
    """Logarithms of energies, [bins, frames], are the same to `tolerance`.

    Far below a frame's loudest bin float32 has few digits left, which differ between processors: there the reference,
    and we, are up to 0.01 from float64.
    """
    energies, expected = np.exp(found.astype(np.float64)), np.exp(wanted.astype(np.float64))
    np.testing.assert_array_less(
        np.abs(energies - expected), tolerance * expected + 1e-10 * expected.max(axis=0, keepdims=True)
    )


@pytest.mark.shared
@pytest.mark.skipif(not PARITY.exists(), reason="needs the real data")
def test_official_preprocessing():
    reference = np.load(PARITY / "preprocess_reference.npz")
    for name in ("noise_2s", "chirp_2s", "short_half_second", "silence_2s"):
        found = log_mel(torch.from_numpy(reference[f"waveform/{name}"][0]))
        found = torch.nn.functional.pad(found, (0, 204 - found.shape[1])).numpy()
        assert_same_energies(found, reference[f"logmel/{name}"][0], 3e-4)
    for key in reference.files:
        if key.startswith("clip_times/"):
            duration, clips = float(key.split("/")[1]), int(key.split("/")[2])
            np.testing.assert_allclose(clip_starts(duration, 2, clips), reference[key][:, 0], rtol=1e-12)
    files = json.loads((PARITY / "preprocess_files.json").read_text())["audio"]
    for file, expected in zip(files, reference["audio"], strict=True):
        sound = open_sound(SHARED / "data" / file)
        for start, clip in zip(clip_starts(sound.duration, 2, 3), expected, strict=True):
            found = log_mel(sound.read(start, 2))
            found = torch.nn.functional.pad(found, (0, 204 - found.shape[1])).numpy()
            assert_same_energies(found, clip[0] * 9.138 - 4.268, 4e-4 * 9.138)


def chirp(seconds, rate):
    """A tone that rises through the voice's frequencies, and another on a second channel: [T, 2]."""
    times = np.arange(int(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (300 + 200 * times) * times), 0.25 * np.sin(2 * np.pi * 500 * times)], 1)


@pytest.mark.parametrize(
    ("suffix", "subtype", "most"),
    [
        (".wav", "PCM_U8", 1e-2),
        (".wav", "PCM_16", 1e-4),
        (".wav", "PCM_24", 1e-6),
        (".wav", "FLOAT", 1e-6),
        (".aiff", "PCM_16", 1e-4),
        (".flac", "PCM_16", 1e-4),
        (".ogg", "VORBIS", 3e-2),
        (".ogg", "OPUS", 3e-2),
        (".mp3", "MPEG_LAYER_III", 3e-2),
    ],
)
def test_formats_of_libsndfile(tmp_path, suffix, subtype, most):
    path, rate = tmp_path / f"a{suffix}", 48_000 if subtype == "OPUS" else 44_100
    expected = chirp(1.5, rate)
    soundfile.write(path, expected, rate, subtype=subtype)
    sound = open_sound(path)
    assert sound.decoder == "soundfile" and sound.rate == rate and sound.duration == pytest.approx(1.5, abs=0.06)
    first, last = rate // 4, rate // 4 + rate
    for channels, wanted in (("first", expected[:, 0]), ("mean", expected.mean(axis=1))):
        np.testing.assert_allclose(sound.samples(first, last, channels), wanted[first:last], atol=most)
    whole = sound.samples(0, sound.length)
    for first in (12_000, 33_333):
        np.testing.assert_allclose(sound.samples(first, first + 2000), whole[first : first + 2000], atol=1e-5)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize(
    ("suffix", "codec", "most"),
    [
        (".m4a", "aac", 3e-2),
        (".mp4", "aac", 3e-2),
        (".webm", "libopus", 3e-2),
        (".mkv", "flac", 1e-4),
        (".mov", "pcm_s16le", 1e-4),
        (".m4a", "alac", 1e-4),
    ],
)
def test_formats_of_ffmpeg(tmp_path, suffix, codec, most, layout):
    """Packed and planar samples, one channel and two; in the right place after a jump."""
    av = pytest.importorskip("av")
    path, rate = tmp_path / f"a{suffix}", 48_000
    expected = chirp(4, rate)[:, : 1 if layout == "mono" else 2].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 192_000
        resampler = av.AudioResampler(
            format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size or 1024
        )
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(expected.T), format="fltp", layout=layout)
        frame.rate, frame.pts = rate, 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    sound = open_sound(path)
    assert sound.decoder == "av" and sound.rate == rate and sound.duration == pytest.approx(4, abs=0.1)
    tick = rate // 1000 if suffix == ".webm" else 0  # which knows where it has jumped to by milliseconds only
    for first in (rate // 4, 5 * rate // 2):
        for channels, wanted in (("first", expected[:, 0]), ("mean", expected.mean(axis=1))):
            found = sound.samples(first, first + rate, channels).numpy()
            shifted = (wanted[first + late : first + rate + late] for late in range(-tick, tick + 1))
            assert min(abs(found - one).max() for one in shifted) < most
