"""The loss that binds a sense to images (Equation 6.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.bind.model import ImageBind
from vitrail.errors import VitrailError
from vitrail.layers.contrastive import info_nce


def temperature_of(model: ImageBind, first: str, second: str) -> Tensor:
    """tau of a pair of senses: that of the second, or of the first where the second has none, at least 0.01.

    A fixed one is a constant, a learned one carries the gradient to its logarithm. In (image, M) pairs it is M's
    (Table 6.5).

    Raises:
        VitrailError: neither has a temperature.
    """
    for name in (second, first):
        if name in model.scales:
            scale: Any = model.scales[name]
            return 1 / scale(torch.ones_like(scale.log_scale))
    raise VitrailError(f"Neither {first} nor {second} has a temperature; set that of {second}, say to 0.07.")


def pair_loss(
    model: ImageBind, embeddings: Mapping[str, Tensor], first: str, second: str, gather: bool = True
) -> Tensor:
    """L_{I,M} + L_{M,I} of a batch of pairs, a scalar: the sum of both directions, each the mean over the batch.

    The other pairs of the batch are the negatives, over all processes. Detach the embeddings of a sense that the pair
    must not change, such as images that learn from text alone (Table 6.8).

    Args:
        model: whose temperatures count.
        embeddings: of `model.encode`: name -> [B, d], the i-th rows of both of the i-th pair.
        first, second: names of the senses, I and M.
        gather: look among the pairs of all processes, which must have equally many.

    Raises:
        VitrailError: neither sense has a temperature.
    """
    return 2 * info_nce(embeddings[first], embeddings[second], temperature_of(model, first, second), gather)
