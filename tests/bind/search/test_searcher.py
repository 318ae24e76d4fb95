"""Searches find what a sorted list of cosines does."""

import json
from itertools import pairwise

import numpy as np
import pytest

from vitrail.bind.search.index import Embedded, Index, Source
from vitrail.bind.search.searcher import LEAST_RECALL, Cells, Searcher, combine
from vitrail.errors import VitrailError

pytest.importorskip("pyarrow")
pytest.importorskip("faiss")

COUNT, DIMENSION = 2000, 16


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An index of clustered vectors, by turns of two senses, and the vectors."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((20, DIMENSION))
    vectors = centres[generator.integers(20, size=COUNT)] + 0.5 * generator.standard_normal((COUNT, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    folder = tmp_path_factory.mktemp("filled")
    index = Index.open_or_make(folder / "index", "toy", DIMENSION)
    sources = [Source(folder / str(n), f"{n:05}", ("image", "audio")[n % 2]) for n in range(COUNT)]
    index.update(sources, lambda given: [Embedded([None], vectors[int(source.name)][None]) for source in given])
    return index, vectors


def expected(vectors, query, count, numbers):
    similarities = vectors[numbers].astype(np.float64) @ query
    order = np.argsort(-similarities, kind="stable")[:count]
    return [f"{numbers[place]:05}" for place in order], similarities[order]


@pytest.mark.parametrize("modalities", [(), ("audio",), ("image", "audio")])
def test_exact_search_is_a_sorted_list(filled, modalities):
    index, vectors = filled
    searcher = Searcher(index)
    assert searcher.cells is None
    numbers = np.arange(1, COUNT, 2) if modalities == ("audio",) else np.arange(COUNT)
    for query in vectors[:5]:
        hits = searcher.search(query, 7, modalities)
        names, similarities = expected(vectors, query, 7, numbers)
        assert [hit.entry.name for hit in hits] == names
        np.testing.assert_allclose([hit.similarity for hit in hits], similarities, atol=1e-6)


def recall(searcher, vectors, modalities, numbers):
    """The share of the ten nearest, by brute force, that are found for a hundred queries."""
    found = 0
    for query in vectors[:100]:
        hits = searcher.search(query, 10, modalities)
        names, similarities = expected(vectors, query, 10, numbers)
        assert len(hits) == 10
        assert all(a.similarity >= b.similarity for a, b in pairwise(hits))
        assert hits[0].similarity <= similarities[0] + 1e-6
        found += len({hit.entry.name for hit in hits} & set(names))
    return found / 1000


def test_approximate_search_finds_nearly_all_and_is_kept_for_one_state_of_the_index(filled):
    index, vectors = filled
    searcher = Searcher(index, exact_below=COUNT)
    cells = searcher.cells
    assert cells.count == COUNT // 39
    assert cells.probes < cells.count
    assert LEAST_RECALL <= cells.recall <= recall(searcher, vectors, (), np.arange(COUNT)) + 0.03
    (kept,) = index.folder.glob("cells-*.faiss")
    about = kept.with_suffix(".json")
    assert Cells(**json.loads(about.read_text())) == cells
    written = kept.stat().st_mtime_ns
    again = Searcher(index, exact_below=COUNT)
    assert kept.stat().st_mtime_ns == written
    assert again.cells == cells
    assert again.search(vectors[3], 5) == searcher.search(vectors[3], 5)
    about.unlink()  # as if the process had been killed before it was written
    assert Searcher(index, exact_below=COUNT).cells == cells
    assert about.exists()


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        (".faiss", lambda data: data[: len(data) // 2]),
        (".faiss", lambda data: b""),
        (".json", lambda data: data[:10]),
        (".json", lambda data: b"[]"),
        (".json", lambda data: data.replace(b'"probes": ', b'"probes": -')),
        (".json", lambda data: data.replace(b'"probes": ', b'"probes": 0.')),
        (".json", lambda data: data.replace(b'"recall"', b'"other"')),
        (".json", lambda data: data.replace(b'"recall": ', b'"recall": "a", "x": ')),
    ],
)
def test_cells_that_are_damaged_are_made_anew(filled, suffix, change):
    index, vectors = filled
    cells = Searcher(index, exact_below=COUNT).cells
    (kept,) = index.folder.glob(f"cells-*{suffix}")
    right = kept.read_bytes()
    kept.write_bytes(change(right))
    again = Searcher(index, exact_below=COUNT)
    assert again.cells == cells and len(again.search(vectors[0], 10)) == 10
    assert kept.read_bytes() == right


def test_cells_that_are_lost_are_made_anew(filled):
    index, _ = filled
    cells = Searcher(index, exact_below=COUNT).cells
    (kept,) = index.folder.glob("cells-*.faiss")
    kept.unlink()
    assert Searcher(index, exact_below=COUNT).cells == cells and kept.exists()


def test_the_recall_said_is_that_of_brute_force(filled):
    index, vectors = filled
    cells = Searcher(index, exact_below=COUNT).cells
    sample = np.random.default_rng(0).permutation(COUNT)[:256]
    similarities = vectors[sample] @ vectors.T
    similarities[np.arange(256), sample] = -2
    truth = (-similarities).argsort(axis=1)[:, :10]
    faiss = pytest.importorskip("faiss")
    (kept,) = index.folder.glob("cells-*.faiss")
    found = faiss.read_index(str(kept))

    def share(probes):
        _, rows = found.search(vectors[sample], 11, params=faiss.SearchParametersIVF(nprobe=probes))
        return sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), rows.tolist(), strict=True)) / truth.size

    assert cells.recall == pytest.approx(share(cells.probes), abs=1e-4)
    assert share(cells.probes // 2) < LEAST_RECALL <= cells.recall


def test_among_few_the_search_is_exact(filled):
    """Half of the vectors are of one sense: too few for cells."""
    index, vectors = filled
    searcher = Searcher(index, exact_below=COUNT // 2 + 1)
    assert searcher.approximates() and not searcher.approximates(("audio",))
    assert recall(searcher, vectors, ("audio",), np.arange(1, COUNT, 2)) == 1
    wide = Searcher(index, exact_below=COUNT // 2)
    assert recall(wide, vectors, ("audio",), np.arange(1, COUNT, 2)) > 0.9
    assert {hit.entry.modality for hit in wide.search(vectors[0], 10, ("audio",))} == {"audio"}
    assert len(wide.search(vectors[0], COUNT // 2, ("audio",))) == COUNT // 2  # more than the cells hold


def test_cells_follow_the_index(tmp_path):
    vectors = np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index.open_or_make(tmp_path / "index", "toy", 4)

    def embed(given):
        return [Embedded([None], vectors[int(source.name)][None]) for source in given]

    for count in (200, 300):
        index.update([Source(tmp_path / "none", f"{n:05}", "image") for n in range(count)], embed)
        searcher = Searcher(index, exact_below=100)
        assert len(searcher.search(vectors[0], 1000)) == count
        assert searcher.search(vectors[count - 1], 1)[0].entry.name == f"{count - 1:05}"
        assert len(list(index.folder.glob("cells-*"))) == 2
    index.update([], embed)
    assert Searcher(index, exact_below=0).search(vectors[0]) == []


def test_nothing_to_find(filled, tmp_path):
    index, vectors = filled
    assert Searcher(index).search(vectors[0], 5, ("depth",)) == []
    empty = Index.open_or_make(tmp_path / "empty", "toy", DIMENSION)
    empty.update([], lambda given: [])
    assert Searcher(empty).search(vectors[0]) == []
    assert len(Searcher(index).search(vectors[0], 10**6)) == COUNT
    with pytest.raises(VitrailError, match="The query has 3 dimensions, the index 16"):
        Searcher(index).search(vectors[0, :3])


def test_arithmetic():
    axes = 5 * np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(combine(axes[:2]), [0.5**0.5, 0.5**0.5, 0], atol=1e-6)
    np.testing.assert_allclose(combine(axes, [1, -2, 2]), [1 / 3, -2 / 3, 2 / 3], atol=1e-6)
    with pytest.raises(VitrailError, match="adds up to nothing"):
        combine(axes[[0, 0]], [1, -1])
    with pytest.raises(VitrailError, match="3 things to search by have 1 weights"):
        combine(axes, [1])
    with pytest.raises(VitrailError, match="no finite number"):
        combine(axes, [1, 1, float("inf")])
    np.testing.assert_allclose(combine(axes, [1e39, 0, 0]), [1, 0, 0])


@pytest.mark.parametrize("size", [5e-324, 1e-7, 1e308])
def test_only_the_proportions_of_weights_count(size):
    np.testing.assert_allclose(combine(np.eye(3, dtype=np.float32), [size, -size, 0]), [0.5**0.5, -(0.5**0.5), 0])
    np.testing.assert_allclose(combine(np.eye(3, dtype=np.float32)[:1], [size]), [1, 0, 0])
    with pytest.raises(VitrailError, match="adds up to nothing"):
        combine(np.eye(3, dtype=np.float32)[[0, 0]], [size, -size])


def test_weights_of_nothing():
    with pytest.raises(VitrailError, match="adds up to nothing"):
        combine(np.eye(3, dtype=np.float32), [0, 0, 0])
