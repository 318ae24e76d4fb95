"""The index is what its files are, through changes, kills and other processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from vitrail.bind.search import index as module
from vitrail.bind.search.index import MANIFEST, Embedded, Entry, Index, Source
from vitrail.errors import FileError, VitrailError

pytest.importorskip("pyarrow")


def embed(sources):
    """From a file's text: a vector for each word, ten seconds each; no word: nothing that can be embedded."""
    return [embed_one(source) for source in sources]


def embed_one(source):
    words = source.path.read_text().split()
    if not words:
        return VitrailError(f"{source.name} is empty; leave it out.")
    vectors = np.stack([vector(word) for word in words])
    return Embedded([(10.0 * number, 10.0) for number in range(len(words))] if len(words) > 1 else [None], vectors)


def vector(word):
    made = np.random.default_rng(list(word.encode())).standard_normal(4).astype(np.float32)
    return made / np.linalg.norm(made)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in {"a": "one", "b": "two three", "c": "four"}.items():
        (folder / name).write_text(text)
    return folder


def sources(folder):
    return [Source(path, path.name, "text") for path in sorted(folder.iterdir())]


def contents(index):
    entries, vectors = index.read()
    assert vectors.dtype == np.float32 and vectors.shape == (len(entries), 4)
    return {(entry.name, entry.start): row.tolist() for entry, row in zip(entries, vectors, strict=True)}


def test_only_what_is_new_or_changed_is_embedded(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    asked = []

    def recorded(given):
        asked.append([source.name for source in given])
        return embed(given)

    assert index.update(sources(files), recorded, every=2) == module.Changes(3, 0, 0, ())
    assert asked == [["a", "b"], ["c"]]
    expected = {("a", None): "one", ("b", 0): "two", ("b", 10): "three", ("c", None): "four"}
    assert contents(index) == {key: vector(word).tolist() for key, word in expected.items()}
    assert index.read()[0][1] == Entry("b", "text", 0.0, 10.0)

    (files / "b").write_text("five")
    (files / "c").unlink()
    (files / "d").write_text("six")
    (files / "e").write_text("")
    again = Index.open(tmp_path / "index")
    assert again.update(sources(files), recorded) == module.Changes(2, 1, 1, ("e is empty; leave it out.",))
    assert asked[2:] == [["b", "d", "e"]]
    expected = {("a", None): "one", ("b", None): "five", ("d", None): "six"}
    assert contents(again) == {key: vector(word).tolist() for key, word in expected.items()}
    assert contents(Index.open(tmp_path / "index")) == contents(again)
    assert again.version != index.version


def test_a_file_that_can_no_longer_be_embedded_is_forgotten(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    (files / "b").write_text("")
    assert index.update(sources(files), embed) == module.Changes(0, 2, 0, ("b is empty; leave it out.",))
    assert {entry.name for entry in index.read()[0]} == {"a", "c"}


def test_names_that_cannot_be_kept(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    (files / os.fsdecode(b"b\xff")).write_text("five")
    sentence = r"The name 'b\udcff' is not in UTF-8, as tables keep names; rename the file."
    for added in (3, 0):
        assert index.update(sources(files), embed) == module.Changes(added, 3 - added, 0, (sentence,))
        assert len(index.read()[0]) == 4 and index.stale(sources(files)) == []


def test_pruning_can_be_left_out(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    assert index.update(sources(files)[:1], embed, prune=False) == module.Changes(0, 1, 0, ())
    assert len(index.read()[0]) == 4


def test_an_empty_index_can_be_read(tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update([], embed)
    assert contents(Index.open(tmp_path / "index")) == {}


def test_parts_are_joined_when_they_are_many(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PARTS", 3)
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    for number in range(8):
        (files / "a").write_text(f"word{number} again" if number % 2 else f"word{number}")
        index.update(sources(files), embed)
        assert len(list((tmp_path / "index").glob("*.parquet"))) <= 3
        assert [key for key in contents(index) if key[0] == "a"] == (
            [("a", 0), ("a", 10)] if number % 2 else [("a", None)]
        )
    assert contents(index)["a", 0] == vector("word7").tolist()


def update_and_die(folder, files, writes):
    """Brings an index up to date, and is killed before its n-th rename."""
    rename, left = Path.replace, [writes]

    def dying(path, target):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.replace = dying
    module._MOST_PARTS = 2
    Index.open(folder).update(sources(Path(files)), embed, every=1)


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_kill_leaves_the_index_as_it_was_or_as_it_will_be(files, tmp_path, monkeypatch, writes):
    """A process of its own dies, no fork, which might inherit a lock; the next one ends as if nothing had been."""
    monkeypatch.setattr(module, "_MOST_PARTS", 2)
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files)[:1], embed)
    before = contents(index)
    call = (
        f"import runpy; runpy.run_path({__file__!r})['update_and_die']({str(index.folder)!r}, {str(files)!r}, {writes})"
    )
    code = subprocess.run([sys.executable, "-c", call], timeout=120).returncode
    assert code == (-signal.SIGKILL if writes <= 6 else 0)  # two parts, each with its manifest, and all joined
    reopened = Index.open(tmp_path / "index")
    assert before.items() <= contents(reopened).items()
    changes = reopened.update(sources(files), embed)
    assert changes.added + changes.kept == 3 and not changes.failed
    assert sorted(contents(reopened)) == [("a", None), ("b", 0), ("b", 10), ("c", None)]
    known = json.loads((tmp_path / "index" / MANIFEST).read_text())["parts"]
    assert sorted(path.name for path in (tmp_path / "index").glob("*.parquet")) == known
    assert not list((tmp_path / "index").glob(".0*"))


def test_models_do_not_meet(files, tmp_path):
    Index.open_or_make(tmp_path / "index", "toy", 4).update(sources(files), embed)
    with pytest.raises(VitrailError, match="made by toy, whose vectors cannot be compared with those of other"):
        Index.open_or_make(tmp_path / "index", "other", 4)
    with pytest.raises(FileError, match=r"index\.json is damaged; delete"):  # one model has one dimension
        Index.open_or_make(tmp_path / "index", "toy", 8)


def test_options_do_not_meet(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4, options={"clips": True})
    index.update(sources(files), embed)
    assert Index.open(tmp_path / "index").options == {"clips": True}
    for options, sentence in (
        ({}, "made with clips True, not unset"),
        ({"clips": True, "a": "b"}, "with a unset, not b"),
    ):
        with pytest.raises(VitrailError, match=sentence):
            Index.open_or_make(tmp_path / "index", "toy", 4, options=options)


def test_one_process_at_a_time(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    with FileLock(tmp_path / "index" / ".lock"), pytest.raises(VitrailError, match="Another process is at work"):
        Index.open(tmp_path / "index").update(sources(files), embed)


def test_folders_that_are_no_index(files, tmp_path):
    with pytest.raises(FileError, match="There is no index in"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(FileError, match="holds other things than an index"):
        Index.open_or_make(files, "toy", 4)
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    next((tmp_path / "index").glob("*.parquet")).write_bytes(b"PAR1 not really")
    with pytest.raises(FileError, match=r"index is damaged: 00000001\.parquet is missing, or not what it was; delete"):
        index.read()
    (tmp_path / "index" / MANIFEST).write_text(
        '{"format": 2, "model": "toy", "dimension": 4, "source": "", "parts": []}'
    )
    with pytest.raises(FileError, match="is of format 2, not 1"):
        Index.open(tmp_path / "index")
    for damaged in ('{"format": 1', "[]", '{"format": 1, "model": "toy"}', "\xff"):
        (tmp_path / "index" / MANIFEST).write_text(damaged, encoding="latin-1")
        with pytest.raises(FileError, match=r"index\.json is damaged"):
            Index.open(tmp_path / "index")


def test_a_file_of_two_senses_has_vectors_of_both(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    video = Source(files / "a", "a", "image")
    both = [video, replace(video, modality="audio")]
    assert index.update(both, embed).added == 2
    assert [(entry.name, entry.modality) for entry in index.read()[0]] == [("a", "audio"), ("a", "image")]
    (files / "a").write_text("other")
    assert index.update(both, embed) == module.Changes(2, 0, 0, ())
    assert index.update([video], embed) == module.Changes(0, 1, 1, ())  # the sound track is gone
    (entry,), (made,) = index.read()
    assert entry.modality == "image"
    np.testing.assert_array_equal(made, vector("other"))
    assert index.update([replace(video, modality="depth")], embed) == module.Changes(1, 0, 1, ())  # it was no image


def manifest(folder, **changed):
    """Writes other values than those that are there."""
    about = json.loads((folder / MANIFEST).read_text()) | changed
    (folder / MANIFEST).write_text(json.dumps(about))


def test_files_of_others_are_not_touched(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    for name in ("vectors.parquet", "0001.parquet", "00000009.parquet"):
        (tmp_path / "index" / name).write_bytes(b"")
    index.update(sources(files), embed)
    left = sorted(path.name for path in (tmp_path / "index").glob("*.parquet"))
    assert left == ["00000001.parquet", "0001.parquet", "vectors.parquet"]


@pytest.mark.parametrize(
    "changed",
    [
        {"parts": "00000001.parquet"},
        {"parts": ["../00000001.parquet"]},
        {"parts": [1]},
        {"options": {"imu.rate": 100}},
        {"options": [[1, 2]]},
        {"dimension": 0},
        {"patterns": ["*.png"]},
        {"patterns": {"*.png": 1}},
    ],
)
def test_a_manifest_that_cannot_be_is_damaged_before_anything_is_deleted(files, tmp_path, changed):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    manifest(tmp_path / "index", **changed)
    for use in (lambda: Index.open(tmp_path / "index"), lambda: index.update(sources(files), embed)):
        with pytest.raises(FileError, match=r"index\.json is damaged; delete .* and make the index anew\.$"):
            use()
    assert (tmp_path / "index" / "00000001.parquet").exists()


def test_parts_of_another_kind(files, tmp_path):
    index = Index.open_or_make(tmp_path / "index", "toy", 4)
    index.update(sources(files), embed)
    part = tmp_path / "index" / "00000001.parquet"
    sentence = r"index is damaged: 00000001\.parquet is missing, or not what it was; delete the folder and make"
    manifest(tmp_path / "index", dimension=6)
    with pytest.raises(FileError, match=sentence):
        Index.open(tmp_path / "index").read()
    manifest(tmp_path / "index", dimension=4)
    module.write_vectors(part, *index.read())
    for use in (index.read, lambda: index.update(sources(files), embed)):
        with pytest.raises(FileError, match=sentence):
            use()
    part.unlink()
    with pytest.raises(FileError, match=sentence):
        index.read()
