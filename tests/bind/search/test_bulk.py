"""Which files are of which sense, and what becomes of those that are not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from vitrail.bind import ImageBindConfig
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.text import Text
from vitrail.bind.search.bulk import embed_sources, modality_of, sort_files, with_sound
from vitrail.bind.search.index import Source
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.TXT", "notes/a.md", "notes/.git/c.txt", "empty/x.bin", "notes/z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_files_are_sorted_by_pattern_and_suffix(folder):
    sources, unknown = sort_files(folder)
    assert sources == [Source(folder / name, name, "text") for name in ("b.TXT", "notes/z.txt")] and unknown == 2
    sources, unknown = sort_files(folder, {"notes/*.md": "text"})
    assert [source.name for source in sources] == ["b.TXT", "notes/a.md", "notes/z.txt"] and unknown == 1


def test_links_are_followed_but_not_back(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.txt").write_text("far")
    (folder / "notes" / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "notes" / "gone.txt").symlink_to(folder / "nothing")
    sources, unknown = sort_files(folder)
    assert [source.name for source in sources] == ["b.TXT", "notes/link/far.txt", "notes/z.txt"] and unknown == 2


def test_the_first_pattern_counts():
    patterns = {"scans/*": "depth", "*.txt": "thermal"}
    assert modality_of("scans/a.txt", patterns) == "depth" and modality_of("a.txt", patterns) == "thermal"
    assert modality_of("a.TXT", patterns) == "text" and modality_of("a.nothing", patterns) is None


def test_one_bad_file_does_not_keep_the_others(folder):
    torch.manual_seed(0)
    model = ImageBindConfig(8, {"text": Text(width=16, depth=1, heads=2)}).build().eval()
    (folder / "bad.txt").write_bytes(b"\xff\xff")
    names = ("b.TXT", "bad.txt", "gone.txt", "notes/z.txt")
    made = embed_sources(model, [Source(folder / name, name, "text") for name in names], batch_size=3)
    assert [isinstance(one, VitrailError) for one in made] == [False, True, True, False]
    assert str(made[1]) == f"Cannot read {folder / 'bad.txt'}: it is not text in UTF-8; mend it or leave it out."
    expected = model.embed({"text": ["b.TXT", "notes/z.txt"]})["text"]
    for one, vector in zip((made[0], made[3]), expected, strict=True):
        assert one.spans == [None]
        torch.testing.assert_close(torch.from_numpy(one.vectors[0]), vector)


@dataclass(frozen=True, kw_only=True)
class Ticks(Text):
    """Texts as recordings: a clip for every word, or only so many."""

    clips: int | Literal["cover"] = 1

    def parts(self, source):
        words = Path(source).read_text().split()
        if "broken" in words[1:]:
            yield (0.0, 1.0), self.read(words[0])
            raise CorruptSample(source, "it breaks off")
        for second, word in enumerate(words if self.clips == "cover" else words[: self.clips]):
            yield (float(second), 1.0), self.read(word)


def test_what_lasts_has_a_vector_for_the_file_or_for_each_clip(tmp_path):
    torch.manual_seed(0)
    model = ImageBindConfig(8, {"text": Ticks(width=16, depth=1, heads=2, clips=2)}).build().eval()
    for name, text in {"a": "dog cat bird", "b": "dog broken", "c": "rain"}.items():
        (tmp_path / name).write_text(text)
    sources = [Source(tmp_path / name, name, "text") for name in "abc"]
    words = model.encode(
        {"text": torch.cat([model.modality("text").read(word) for word in ["dog", "cat", "bird", "rain"]])}
    )
    words = words["text"].detach()
    whole = embed_sources(model, sources)
    assert str(whole[1]) == f"Cannot read {tmp_path / 'b'}: it breaks off; mend it or leave it out."
    assert whole[0].spans == whole[2].spans == [None]
    both = torch.nn.functional.normalize(words[0] + words[1], dim=0)
    torch.testing.assert_close(torch.from_numpy(whole[0].vectors), both[None])
    torch.testing.assert_close(torch.from_numpy(whole[2].vectors), words[3:])
    timed = embed_sources(model, sources, batch_size=2, timed=True)
    assert isinstance(timed[1], VitrailError)
    assert timed[0].spans == [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)] and timed[2].spans == [(0.0, 1.0)]
    torch.testing.assert_close(torch.from_numpy(timed[0].vectors), words[:3])
    torch.testing.assert_close(torch.from_numpy(timed[2].vectors), words[3:])


def test_numbers_beyond_what_can_be_embedded(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    for name, loudness in {"a.wav": 1e30, "b.wav": 0.1}.items():
        soundfile.write(tmp_path / name, loudness * np.sin(np.arange(32_000.0)), 16_000, subtype="FLOAT")
    model = ImageBindConfig(8, {"audio": Audio(width=16, depth=1, heads=2)}).build().eval()
    made = embed_sources(model, [Source(tmp_path / name, name, "audio") for name in ("a.wav", "b.wav")])
    assert str(made[0]) == f"Cannot embed {tmp_path / 'a.wav'}: its numbers are too large; leave it out."
    assert np.isfinite(made[1].vectors).all()


def test_a_video_is_seen_and_heard(tmp_path):
    av = pytest.importorskip("av")
    for name, visible, audible in (("a.mkv", True, True), ("b.mkv", True, False), ("d.mkv", False, True)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("ffv1", rate=5) if visible else None
            track = container.add_stream("pcm_s16le", rate=8000) if audible else None
            if stream is not None:
                stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
                for _ in range(10):
                    frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            if track is not None:
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
                sound.rate = 8000
                container.mux(track.encode(sound))
                container.mux(track.encode(None))
    (tmp_path / "c.mp4").write_bytes(b"damaged")
    sources, unknown = sort_files(tmp_path)
    assert unknown == 0 and [source.modality for source in sources] == ["image"] * 4
    found = [(source.name, source.modality) for source in with_sound(sources)]
    assert found == [("a.mkv", "image"), ("a.mkv", "audio"), ("b.mkv", "image"), ("c.mp4", "image"), ("d.mkv", "audio")]
    found = [(source.name, source.modality) for source in with_sound(sources, beside=False)]
    assert found == [("a.mkv", "image"), ("b.mkv", "image"), ("c.mp4", "image"), ("d.mkv", "audio")]
    model = ImageBindConfig(8, {"audio": Audio(width=16, depth=1, heads=2)}).build().eval()
    (made,) = embed_sources(model, with_sound(sources)[-1:])
    assert made.vectors.shape == (1, 8)
