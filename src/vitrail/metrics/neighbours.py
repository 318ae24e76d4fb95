"""Classification by nearest neighbours: what features know without any training (Wu et al., 2018)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import VitrailError


def load_faiss() -> Any:
    """The module faiss.

    Raises:
        VitrailError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise VitrailError(
            "Neighbours and k-means need faiss; install it with: pip install 'vitrail[pretrain]'"
        ) from None
    return faiss


def neighbours(queries: Tensor, references: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` references of the largest cosine with each query.

    Args:
        queries: [n, d].
        references: [m, d], m >= count.
        count: k.

    Returns:
        Cosines [n, k], largest first, and the references' numbers [n, k] int64.
    """
    faiss = load_faiss()
    index = faiss.IndexFlatIP(references.shape[1])
    index.add(np.ascontiguousarray(F.normalize(references.float(), dim=1).numpy()))
    similarities, numbers = index.search(np.ascontiguousarray(F.normalize(queries.float(), dim=1).numpy()), count)
    return torch.from_numpy(similarities), torch.from_numpy(numbers)


def vote(similarities: Tensor, labels: Tensor, classes: int, temperature: float = 0.07) -> Tensor:
    """Neighbours' cosines and labels, [n, k] -> scores of the classes, [n, classes]: sums of exp(cosine / T)."""
    scores = torch.zeros(len(labels), classes)
    return scores.scatter_add_(1, labels, (similarities / temperature).exp())


def knn_accuracy(
    queries: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor, count: int = 20
) -> float:
    """The share of queries [n, d] whose neighbours among the references [m, d] vote for the right label.

    Raises:
        VitrailError: there is no reference.
    """
    if not len(references):
        raise VitrailError("Nearest neighbours need images with labels to look among; give some.")
    classes = int(max(labels.max(), reference_labels.max())) + 1
    similarities, numbers = neighbours(queries, references, min(count, len(references)))
    guesses = vote(similarities, reference_labels[numbers], classes).argmax(dim=1)
    return float((guesses == labels).double().mean())


def leave_one_out_accuracy(features: Tensor, labels: Tensor, count: int = 20) -> float:
    """The same with every image looking among all others: [n, d], n >= 2.

    Raises:
        VitrailError: there are fewer than two images.
    """
    if len(features) < 2:
        raise VitrailError("Nearest neighbours need at least two images with labels; give more.")
    similarities, numbers = neighbours(features, features, min(count + 1, len(features)))
    others = numbers != torch.arange(len(features))[:, None]
    others[others.all(dim=1), -1] = False  # of many equal images, not each finds itself: the farthest goes
    keep = others.long().sort(dim=1, descending=True, stable=True).indices[:, :-1]
    similarities, numbers = similarities.gather(1, keep), numbers.gather(1, keep)
    guesses = vote(similarities, labels[numbers], int(labels.max()) + 1).argmax(dim=1)
    return float((guesses == labels).double().mean())
