"""The samples that data sets of images give, and batches of them."""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class LabelledImage(NamedTuple):
    """A sample, or a batch of them.

    Attributes:
        image: [3, H, W]; [B, 3, H, W] in a batch.
        label: the number of the class; [B], int64, in a batch.
    """

    image: Tensor
    label: int


class UnlabelledImage(NamedTuple):
    """A sample without a label, [3, H, W], or a batch of them, [B, 3, H, W]."""

    image: Tensor


def as_sample(image: Tensor, labels: np.ndarray | None, number: int) -> LabelledImage | UnlabelledImage:
    """The sample `number` of a data set with or without labels."""
    return UnlabelledImage(image) if labels is None else LabelledImage(image, int(labels[number]))
