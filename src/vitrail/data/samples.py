"""The samples that data sets of images give, and batches of them."""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class LabelledImage(NamedTuple):
    """A sample.

    Attributes:
        image: [3, H, W].
        label: the number of the class.
    """

    image: Tensor
    label: int


class LabelledImages(NamedTuple):
    """A batch of labelled images, as `default_collate` makes it of samples.

    Attributes:
        image: [B, 3, H, W].
        label: [B], int64.
    """

    image: Tensor
    label: Tensor


class UnlabelledImage(NamedTuple):
    """A sample without a label, [3, H, W], or a batch of them, [B, 3, H, W]."""

    image: Tensor


def as_sample(image: Tensor, labels: np.ndarray | None, number: int) -> LabelledImage | UnlabelledImage:
    """The sample `number` of a data set with or without labels."""
    return UnlabelledImage(image) if labels is None else LabelledImage(image, int(labels[number]))
