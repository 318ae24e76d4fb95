"""Accuracy and confusion of a classifier."""

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vitrail.errors import VitrailError


class Classification:
    """Top-1 and top-5 accuracy, mean cross-entropy, accuracy averaged over classes, confusion matrix.

    Of equal logits the one of the lower class counts as the greater; a logit that is not a number is never correct.

    Attributes:
        confusion: [C, C] int64, the number of samples by true class (rows) and predicted class (columns), without those
            that have no predicted class since a logit is not a number.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self._samples = torch.zeros(classes, dtype=torch.int64)  # of each class
        self._top5 = 0
        self._loss = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: [B, C].
            labels: [B], integers 0 to C - 1.

        Raises:
            VitrailError: the shapes or the labels are not those of a classifier of C classes.
        """
        logits, labels = logits.detach().cpu().double(), labels.detach().cpu().long()
        if logits.shape != (len(labels), self.classes):
            raise VitrailError(
                f"{len(labels)} labels and {self.classes} classes need logits of shape "
                f"[{len(labels)}, {self.classes}], not {list(logits.shape)}; check the model's number of classes."
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= self.classes):
            raise VitrailError(
                f"There is a label {int(labels.max())}, or a negative one, among labels of {self.classes} classes; "
                "they must count from 0: check the data set's labels and the model's number of classes."
            )
        true = logits.gather(1, labels[:, None])
        before = torch.arange(self.classes) < labels[:, None]
        rank = torch.where(before, ~(logits < true), ~(logits <= true)).sum(1)
        self._samples += labels.bincount(minlength=self.classes)
        self._top5 += int((rank < min(5, self.classes)).sum())
        self._loss += float(cross_entropy(logits, labels, reduction="sum"))
        cells = (labels * self.classes + logits.argmax(1))[~logits.isnan().any(1)]
        self.confusion += cells.bincount(minlength=self.classes**2).reshape_as(self.confusion)

    def merge(self, other: Self) -> None:
        """Adds what `other` has gathered."""
        self.confusion += other.confusion
        self._samples += other._samples
        self._top5 += other._top5
        self._loss += other._loss

    def compute(self) -> dict[str, float]:
        """`top1`, `top5` and `mean_class_accuracy` as fractions 0 to 1, and `loss`, the mean cross-entropy in nats.

        With fewer than five classes, `top5` counts all of them; `mean_class_accuracy` averages over the classes that
        have samples.

        Raises:
            VitrailError: no sample has been added.
        """
        count = int(self._samples.sum())
        if not count:
            raise VitrailError("There is nothing to measure: the evaluation had no sample; check the data set.")
        hits, present = self.confusion.diagonal(), self._samples > 0
        return {
            "top1": int(hits.sum()) / count,
            "top5": self._top5 / count,
            "loss": self._loss / count,
            "mean_class_accuracy": float((hits[present] / self._samples[present].double()).mean()),
        }
