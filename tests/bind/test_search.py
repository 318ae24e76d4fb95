"""Searches find what a sorted list of cosines does."""

import numpy as np
import pytest

from vitrail.bind.index import Embedded, Index, Source
from vitrail.bind.search import Searcher, combine
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
    assert searcher.exact
    numbers = np.arange(1, COUNT, 2) if modalities == ("audio",) else np.arange(COUNT)
    for query in vectors[:5]:
        hits = searcher.search(query, 7, modalities)
        names, similarities = expected(vectors, query, 7, numbers)
        assert [hit.entry.name for hit in hits] == names
        np.testing.assert_allclose([hit.similarity for hit in hits], similarities, atol=1e-6)


def test_approximate_search_finds_nearly_all_and_is_kept_for_one_state_of_the_index(filled):
    index, vectors = filled
    searcher = Searcher(index, exact=False)
    found = wanted = 0
    for query in vectors[:100]:
        hits = searcher.search(query, 10, ("audio",))
        assert {hit.entry.modality for hit in hits} == {"audio"}
        names, _ = expected(vectors, query, 10, np.arange(1, COUNT, 2))
        found += len({hit.entry.name for hit in hits} & set(names))
        wanted += len(names)
    assert found / wanted > 0.95
    (kept,) = index.folder.glob("cells-*.faiss")
    written = kept.stat().st_mtime_ns
    again = Searcher(index, exact=False).search(vectors[3], 5)
    assert kept.stat().st_mtime_ns == written and again == searcher.search(vectors[3], 5)


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
