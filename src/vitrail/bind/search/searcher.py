"""Search among unit vectors by cosine: exactly, or beyond some size approximately, with arithmetic as the query."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.bind.search.index import Entry, Index
from vitrail.bind.search.parts import Vectors
from vitrail.errors import VitrailError
from vitrail.files import atomic_path, write_text
from vitrail.metrics.neighbours import load_faiss

EXACT_BELOW = 200_000
"""Vectors; up to there an exact search takes some hundredths of a second."""
LEAST_RECALL = 0.95
"""Share of the ten nearest that an approximate search is to find."""

_NEAREST = 10
_SAMPLE = 256  # vectors that recall is measured with


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
        VitrailError: the sum is nothing, a weight is not finite, or weights and vectors differ in number.
    """
    weights = [1.0] * len(vectors) if weights is None else weights
    if len(weights) != len(vectors):
        raise VitrailError(f"{len(vectors)} things to search by have {len(weights)} weights; give one to each.")
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(weights).all():
        raise VitrailError("A weight of what is searched by is no finite number; give each one, 1 for instance.")
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / (np.abs(shares).max(initial=0) or 1)  # of whatever size, only their proportions count
    total = shares @ units
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise VitrailError("What is searched by adds up to nothing; change the weights.")
    return np.asarray(total / length, dtype=np.float32)


@dataclass(frozen=True)
class Cells:
    """How an approximate search looks."""

    count: int
    """Cells that the vectors are sorted into."""
    probes: int
    """Cells that a query looks into: as many as bring the recall, to the next power of 2."""
    recall: float
    """Share of the ten nearest that were found, of a sample of the index's own vectors as queries."""


class Searcher:
    """The vectors of an index, ready for queries.

    Args:
        index: is read whole.
        exact_below: where a query has fewer vectors to choose among than this, it looks at every one. What an
            approximate search needs is made once for each state of the index, and kept in its folder.

    Attributes:
        cells: of the approximate search; None: all is searched exactly.
    """

    def __init__(self, index: Index, exact_below: int = EXACT_BELOW) -> None:
        self.index = index
        self.exact_below = exact_below
        self.entries, vectors = index.read()
        self.cells: Cells | None = None
        self._exact = load_faiss().IndexFlatIP(index.dimension)
        self._exact.add(vectors)
        if len(self.entries) >= max(exact_below, 1):
            self._approximate, self.cells = _cells(vectors, self._exact, index)
        modalities = np.array([entry.modality for entry in self.entries], dtype=str)
        self._rows = {name: np.flatnonzero(modalities == name) for name in np.unique(modalities).tolist()}

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
        wanted = self._wanted(modalities)
        available = sum(map(len, wanted))
        count = min(count, available)
        if not count:
            return []
        options = {"sel": faiss.IDSelectorBatch(np.concatenate(wanted))} if available < len(self.entries) else {}
        if self.cells is not None and self.approximates(modalities):
            parameters = faiss.SearchParametersIVF(nprobe=self.cells.probes, **options)
            similarities, numbers = self._approximate.search(query[None], count, params=parameters)
            if (numbers >= 0).all():  # the cells held enough
                return self._hits(similarities, numbers)
        return self._hits(*self._exact.search(query[None], count, params=faiss.SearchParameters(**options)))

    def approximates(self, modalities: Sequence[str] = ()) -> bool:
        """Whether a search among these senses, or all, looks into the nearest cells rather than at every vector."""
        return self.cells is not None and sum(map(len, self._wanted(modalities))) >= self.exact_below

    def _wanted(self, modalities: Sequence[str]) -> list[np.ndarray]:
        return [rows for name, rows in self._rows.items() if not modalities or name in modalities]

    def _hits(self, similarities: Vectors, numbers: np.ndarray) -> list[Hit]:
        found = zip(similarities[0].tolist(), numbers[0].tolist(), strict=True)
        return [Hit(self.entries[number], similarity) for similarity, number in found]


def _cells(vectors: Vectors, exact: Any, index: Index) -> tuple[Any, Cells]:
    """Cells around centroids (IVF), of which a query looks into the nearest."""
    faiss = load_faiss()
    path: Path = index.folder / f"cells-{index.version}.faiss"
    about = path.with_suffix(".json")  # written last: with it, all is there
    if about.exists() and (kept := _kept(path, about, len(vectors))):
        return kept
    count = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 39))  # fewer than 39 in a cell are too few
    found = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], count, faiss.METRIC_INNER_PRODUCT)
    found.cp.seed, found.cp.niter = 0, 10
    order = np.random.default_rng(0).permutation(len(vectors))
    found.train(vectors[order[: 64 * count]])
    found.add(vectors)
    cells = _measured(found, exact, vectors[order[:_SAMPLE]], order[:_SAMPLE])
    with atomic_path(path) as temporary:
        faiss.write_index(found, str(temporary))
    write_text(about, json.dumps(asdict(cells)) + "\n")
    for old in index.folder.glob("cells-*"):
        if old.stem != path.stem:
            old.unlink(missing_ok=True)
    return found, cells


def _kept(path: Path, about: Path, count: int) -> tuple[Any, Cells] | None:
    """The cells of so many vectors in files; None: these are damaged, and the cells can be made anew."""
    try:
        found, cells = load_faiss().read_index(str(path)), Cells(**json.loads(about.read_text(encoding="utf-8")))
        fits = (found.ntotal, found.nlist) == (count, cells.count) and cells.probes in range(1, cells.count + 1)
        return (found, cells) if fits and isinstance(cells.probes, int) and 0 <= cells.recall <= 1 else None
    except Exception:  # faiss answers damaged files with errors of many types
        return None


def _measured(found: Any, exact: Any, queries: Vectors, own: np.ndarray) -> Cells:
    """The fewest probes of 1, 2, 4 ... that find enough; a query does not count as its own neighbour."""
    faiss = load_faiss()
    _, nearest = exact.search(queries, _NEAREST + 1)
    truth = [set(row.tolist()) - {number, -1} for row, number in zip(nearest, own.tolist(), strict=True)]
    probes, recall = 1, 0.0
    while True:
        _, numbers = found.search(queries, _NEAREST + 1, params=faiss.SearchParametersIVF(nprobe=probes))
        right = [len(true & set(row.tolist())) for true, row in zip(truth, numbers, strict=True)]
        recall = sum(right) / max(sum(map(len, truth)), 1)
        if recall >= LEAST_RECALL or probes >= found.nlist:
            return Cells(found.nlist, probes, round(recall, 4))
        probes = min(2 * probes, found.nlist)
