"""Search among unit vectors by cosine: exactly, or beyond some size approximately, with arithmetic as the query."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.bind.index import Entry, Index, Vectors
from vitrail.errors import VitrailError
from vitrail.files import atomic_path
from vitrail.metrics.neighbours import load_faiss

EXACT_BELOW = 200_000  # vectors; up to there an exact search takes some hundredths of a second
_PROBES = 32  # of the approximate index's cells


@dataclass(frozen=True)
class Hit:
    """One thing that was found."""

    entry: Entry
    """What it is."""
    similarity: float
    """Its cosine with the query."""


def combine(vectors: Vectors, weights: Sequence[float] | None = None) -> Vectors:
    """Embedding arithmetic (Section 6.4.4): the weighted sum of unit vectors, of unit length again.

    Args:
        vectors: [n, d], of any senses; scaled to unit length first.
        weights: of each; negative ones take away. None: equal ones.

    Returns:
        [d].

    Raises:
        VitrailError: the sum is nothing, or weights and vectors differ in number.
    """
    weights = [1.0] * len(vectors) if weights is None else weights
    if len(weights) != len(vectors):
        raise VitrailError(f"{len(vectors)} things to search by have {len(weights)} weights; give one to each.")
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = np.asarray(weights, dtype=np.float32) @ units
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise VitrailError("What is searched by adds up to nothing; change the weights.")
    return np.asarray(total / length, dtype=np.float32)


class Searcher:
    """The vectors of an index, ready for queries.

    Args:
        index: is read whole.
        exact: look at every vector; None: where there are fewer than `EXACT_BELOW`. What an approximate search needs is
            made once for each state of the index, and kept in its folder.
    """

    def __init__(self, index: Index, exact: bool | None = None) -> None:
        self.index = index
        self.entries, self.vectors = index.read()
        self.exact = len(self.entries) < EXACT_BELOW if exact is None else exact
        self._faiss = _exact(self.vectors) if self.exact else _approximate(self.vectors, index)
        self._modalities = np.array([entry.modality for entry in self.entries])

    def search(self, query: Vectors, count: int = 10, modalities: Sequence[str] = ()) -> list[Hit]:
        """What is nearest to a query, nearest first.

        Args:
            query: [d], of unit length.
            count: most hits.
            modalities: find these alone; none given: all.

        Raises:
            VitrailError: the query is of another dimension.
        """
        if query.shape != (self.index.dimension,):
            raise VitrailError(
                f"The query has {query.shape[-1]} dimensions, the index {self.index.dimension}; use the index's model."
            )
        faiss = load_faiss()
        wanted = np.flatnonzero(np.isin(self._modalities, modalities)) if modalities else np.arange(len(self.entries))
        count = min(count, len(wanted))
        if not count:
            return []
        options: dict[str, Any] = {"sel": faiss.IDSelectorBatch(wanted)} if modalities else {}
        if not self.exact:
            options["nprobe"] = _PROBES
        kind = faiss.SearchParameters if self.exact else faiss.SearchParametersIVF
        similarities, numbers = self._faiss.search(query[None], count, params=kind(**options))
        found = zip(similarities[0].tolist(), numbers[0].tolist(), strict=True)
        return [Hit(self.entries[number], similarity) for similarity, number in found if number >= 0]


def _exact(vectors: Vectors) -> Any:
    found = load_faiss().IndexFlatIP(vectors.shape[1])
    found.add(vectors)
    return found


def _approximate(vectors: Vectors, index: Index) -> Any:
    """Cells around centroids (IVF), of which a query looks into the nearest."""
    faiss = load_faiss()
    path: Path = index.folder / f"cells-{index.version}.faiss"
    if path.exists():
        return faiss.read_index(str(path))
    cells = int(4 * len(vectors) ** 0.5)
    found = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    found.cp.seed, found.cp.niter = 0, 10
    found.train(vectors[np.random.default_rng(0).permutation(len(vectors))[: 64 * cells]])
    found.add(vectors)
    for old in index.folder.glob("cells-*.faiss"):
        old.unlink()
    with atomic_path(path) as temporary:
        faiss.write_index(found, str(temporary))
    return found
