"""Cross-modal retrieval: how far down the list a query finds what belongs to it (Section 6.4.6)."""

import torch
from torch import Tensor

from vitrail.errors import VitrailError

CUTOFFS = (1, 5, 10)
_CELLS = 2**24  # similarities that are in memory at once


def retrieval_ranks(queries: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
    """The rank, from 1, of the nearest item of its own, for each query that has any.

    An item before it in the list is one of no lesser cosine that is not the query's own: ties count against the query,
    and what else is its own does not stand in the way.

    Args:
        queries: [n, d] unit vectors.
        items: [m, d] unit vectors.
        pairs: [p, 2] int64, numbers of a query and of an item of its own; a query may have several items, an item
            several queries. None: the i-th item is the i-th query's.

    Returns:
        [q] int64, in order of the queries that have items.

    Raises:
        VitrailError: vectors or pairs that do not go together, or vectors that are not finite.
    """
    pairs = _checked(queries, items, pairs)
    pairs = pairs[pairs[:, 0].argsort(stable=True)]
    asking = pairs[:, 0].unique_consecutive()
    rows = max(1, _CELLS // len(items))
    ranks = []
    for few in asking.split(rows):
        own = pairs[(pairs[:, 0] >= few[0]) & (pairs[:, 0] <= few[-1])]
        row, column = torch.searchsorted(few, own[:, 0].contiguous()), own[:, 1]
        similarities = queries[few] @ items.mT
        best = similarities.new_full((len(few),), -torch.inf)
        best.scatter_reduce_(0, row, similarities[row, column], "amax")
        similarities[row, column] = -torch.inf
        ranks.append(1 + (similarities >= best[:, None]).sum(dim=1))
    return torch.cat(ranks)


def summarize_ranks(ranks: Tensor) -> dict[str, float]:
    """`r1`, `r5`, `r10`: the shares of ranks up to there, 0 to 1, and `median_rank`, of [q] ranks from 1."""
    recalls = {f"r{cutoff}": float((ranks <= cutoff).double().mean()) for cutoff in CUTOFFS}
    return recalls | {"median_rank": float(ranks.double().quantile(0.5))}


def retrieval(
    first: Tensor, second: Tensor, pairs: Tensor | None = None, names: tuple[str, str] = ("first", "second")
) -> dict[str, float]:
    """Retrieval in both directions between two senses.

    Args:
        first: [n, d] unit vectors of the one.
        second: [m, d] of the other.
        pairs: [p, 2] int64, which of the first belongs to which of the second, as in `retrieval_ranks`.
        names: of the senses.

    Returns:
        `text_to_audio_r1` and so on for r5, r10 and median_rank, then the same for `audio_to_text`.

    Raises:
        VitrailError: as `retrieval_ranks`.
    """
    there = summarize_ranks(retrieval_ranks(first, second, pairs))
    back = summarize_ranks(retrieval_ranks(second, first, None if pairs is None else pairs.flip(1)))
    one, other = names
    return {f"{one}_to_{other}_{name}": value for name, value in there.items()} | {
        f"{other}_to_{one}_{name}": value for name, value in back.items()
    }


def _checked(queries: Tensor, items: Tensor, pairs: Tensor | None) -> Tensor:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise VitrailError(
            f"Vectors of shapes {list(queries.shape)} and {list(items.shape)} cannot be compared; "
            "give two matrices [n, d] and [m, d] from one model."
        )
    if not (queries.isfinite().all() and items.isfinite().all()):
        raise VitrailError("There are vectors for retrieval that are not finite; check the model that made them.")
    if pairs is None:
        if len(queries) != len(items):
            raise VitrailError(
                f"{len(queries)} and {len(items)} vectors do not pair off; say by `pairs` what belongs together."
            )
        pairs = torch.arange(len(queries))[:, None].expand(-1, 2)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise VitrailError(f"Pairs of shape {list(pairs.shape)} are none; give [p, 2] numbers of vectors, p >= 1.")
    if pairs.min() < 0 or (pairs.amax(dim=0) >= torch.tensor([len(queries), len(items)], device=pairs.device)).any():
        raise VitrailError(
            f"There are pairs of vectors that do not exist, among {len(queries)} and {len(items)}; number them from 0."
        )
    return pairs.to(queries.device)
