"""How far pre-training has come: the loss on held-out images, and what their nearest neighbours say."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from vitrail.errors import VitrailError
from vitrail.metrics.neighbours import leave_one_out_accuracy


class PretextMetric:
    """Means of a pretext task's terms over images, and the accuracy of nearest neighbours where there are labels."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._images = 0
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, terms: Mapping[str, Tensor], features: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            terms: by name, [B].
            features: [B, d].
            labels: [B] int64, -1 where unknown.
        """
        self._images += len(features)
        for name, values in terms.items():
            self._sums[name] += float(values.double().sum())
        self._features.append(features[labels >= 0])
        self._labels.append(labels[labels >= 0])

    def merge(self, other: Self) -> None:
        """Adds what `other` has gathered."""
        for name, value in other._sums.items():
            self._sums[name] += value
        self._images += other._images
        self._features += other._features
        self._labels += other._labels

    def compute(self) -> dict[str, float]:
        """The terms' means; with two labelled images or more `knn`, the leave-one-out accuracy of 20 neighbours.

        Raises:
            VitrailError: no image has been added.
        """
        if not self._images:
            raise VitrailError("There is nothing to measure: the evaluation had no image; check the data set.")
        figures = {name: value / self._images for name, value in self._sums.items()}
        labels = torch.cat(self._labels)
        if len(labels) > 1:
            figures["knn"] = leave_one_out_accuracy(torch.cat(self._features), labels)
        return figures
