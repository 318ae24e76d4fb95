import math

import numpy as np
import pytest
import soundfile
import torch

from vitrail.bind.modalities.audio import Audio
from vitrail.data.audio import log_mel
from vitrail.data.corrupt import CorruptSample


@pytest.fixture
def path(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 80000), 16000, subtype="FLOAT")
    return tmp_path / "a.wav"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_clips(path):
    waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    found = Audio().read(path)
    assert found.shape == (3, 1, 128, 204)
    for clip, start in zip(found, (0, 24000, 48000), strict=True):
        torch.testing.assert_close(clip[0, :, :198], (log_mel(waveform[start : start + 32000]) + 4.268) / 9.138)
    assert (found[..., 198:] == torch.tensor(4.268) / 9.138).all()
    assert torch.equal(Audio(clips="cover").read(path), found)


def test_a_part_of_a_file(path):
    waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])  # 5 s

    def expected(*starts):
        clips = [log_mel(waveform[start : start + 32000]) for start in starts]
        return torch.stack([torch.nn.functional.pad(clip, (0, 6))[None] for clip in clips]).add(4.268) / 9.138

    two = Audio(clips=2)
    torch.testing.assert_close(two.read_part(path, (1.0, 3.0)), expected(16000, 32000))
    torch.testing.assert_close(two.read_part(path, (2.0, math.inf)), expected(32000, 48000))
    torch.testing.assert_close(two.read_part(path, (1.0, 0.5)), expected(16000, 16000))
    torch.testing.assert_close(Audio(clips="cover").read_part(path, (4.5, math.inf)), expected(48000))
    with pytest.raises(CorruptSample, match="it lasts 5 s, and a part is to begin at 7 s"):
        two.read_part(path, (7.0, 1.0))


def test_short_sounds_are_padded_or_repeated(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8000), 16000, subtype="FLOAT")
    found = Audio(clips=1).read(tmp_path / "a.wav")
    assert (found[..., 48:] == torch.tensor(4.268) / 9.138).all()
    repeated = Audio(clips=1, padding="repeat").read(tmp_path / "a.wav")
    torch.testing.assert_close(repeated[..., 50:98], repeated[..., :48], rtol=0, atol=1e-3)


def test_samples(path):
    plain = Audio(frequency_mask=0)
    assert torch.equal(plain.sample(path, generator(), start=1.5), plain.read(path)[1])
    assert torch.equal(plain.sample(path, generator(), start=9), plain.read(path)[2])
    assert not torch.equal(plain.sample(path, generator(1)), plain.sample(path, generator(2)))
    counts = set()
    for seed in range(40):
        masked = Audio().sample(path, generator(seed), start=0)
        rows = (masked[0] == 0).all(dim=1).nonzero().flatten()
        assert len(rows) == 0 or rows[-1] - rows[0] == len(rows) - 1
        counts.add(len(rows))
    assert max(counts) == 12
    assert len(counts) > 8


def test_encoder():
    assert Audio(width=12, depth=1, heads=3).build(5)(torch.zeros(2, 1, 128, 204)).shape == (2, 5)
