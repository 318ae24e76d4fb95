"""Which files are of which sense, and what becomes of those that are not."""

import pytest
import torch

from vitrail.bind import ImageBindConfig
from vitrail.bind.bulk import embed_sources, modality_of, sort_files
from vitrail.bind.index import Source
from vitrail.bind.modalities.text import Text
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
