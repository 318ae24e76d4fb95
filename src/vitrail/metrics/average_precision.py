"""Mean average precision of classifiers whose samples may be of several classes, as AudioSet's (Table 6.1)."""

from typing import Self

import torch
from torch import Tensor

from vitrail.errors import VitrailError


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """The area below precision over recall, in steps: the sum over thresholds of precision times gain in recall.

    Samples of equal scores fall under one threshold.

    Args:
        scores: [n], greater for what is rather of the class.
        positive: [n] bool, at least one of them true.
    """
    order = scores.argsort(descending=True, stable=True)
    scores, found = scores[order], positive[order].double().cumsum(0)
    last = torch.ones_like(positive)
    last[:-1] = scores[:-1] != scores[1:]
    recall = found[last] / found[-1]
    precision = found[last] / (last.nonzero()[:, 0] + 1)
    return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())


class MultiLabelClassification:
    """Average precision class by class, and its mean."""

    def __init__(self, classes: int):
        self.classes = classes
        self._logits: list[Tensor] = []
        self._positive: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: [B, C], of which only the order within each class counts.
            labels: [B, C], 1 where a sample is of the class, else 0.

        Raises:
            VitrailError: the shapes are not those of a classifier of C classes, or there are other labels.
        """
        logits, labels = logits.detach().cpu(), labels.detach().cpu()
        if logits.shape != labels.shape or logits.shape[1:] != (self.classes,):
            raise VitrailError(
                f"Logits of shape {list(logits.shape)} and labels of shape {list(labels.shape)} are not "
                f"[B, {self.classes}] both; check the model's number of classes."
            )
        if not ((labels == 0) | (labels == 1)).all():
            raise VitrailError("There are labels other than 0 and 1; say of every sample and class which it is.")
        self._logits.append(logits)
        self._positive.append(labels.bool())

    def merge(self, other: Self) -> None:
        """Adds what `other` has gathered."""
        self._logits += other._logits
        self._positive += other._positive

    def compute(self) -> dict[str, float]:
        """`mean_average_precision`, 0 to 1, over the classes that have samples.

        Raises:
            VitrailError: there is no such class, or a logit is not a number.
        """
        logits = torch.cat([torch.zeros(0, self.classes), *self._logits])
        positive = torch.cat([torch.zeros(0, self.classes, dtype=torch.bool), *self._positive])
        present = positive.any(dim=0).nonzero()[:, 0].tolist()
        if not present:
            raise VitrailError("There is nothing to measure: no sample is of any class; check the data set.")
        if logits.isnan().any():
            raise VitrailError("There are logits that are not numbers; check the model.")
        values = [average_precision(logits[:, number], positive[:, number]) for number in present]
        return {"mean_average_precision": sum(values) / len(values)}
