"""Large models in little memory: matrices as bfloat16, or as int8 with a scale for each row.

Only what is stored shrinks. A matrix is widened to the precision of what it is multiplied with when its turn comes,
so that the arithmetic stays the same, at the cost of one matrix at a time.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Literal["float32", "bfloat16", "int8"]
"""How the matrices of a model are stored."""

BLOCK = 2**18  # weights that are rounded at a time: large temporary copies would leave memory in pieces


class CompactMatrix(nn.Module):
    """A matrix of n rows in fewer bits.

    Buffers: `weight` [n, m], bfloat16 or int8; `scale` [n] float32, what each row of int8 is multiplied with.

    Args:
        matrix: [n, m].
        weights: how to store it.
    """

    weight: Tensor
    scale: Tensor | None

    def __init__(self, matrix: Tensor, weights: Weights) -> None:
        super().__init__()
        matrix = matrix.detach()
        if weights == "int8":
            self.register_buffer("weight", torch.empty_like(matrix, dtype=torch.int8))
            self.register_buffer("scale", matrix.new_empty(len(matrix), dtype=torch.float32))
            assert self.scale is not None
            rows = max(1, BLOCK // matrix.shape[1])
            parts = (tensor.split(rows) for tensor in (matrix, self.weight, self.scale))
            for part, weight, scale in zip(*parts, strict=True):
                largest = part.abs().amax(dim=1)
                scale.copy_(torch.where(largest > 0, largest / 127, 1.0))
                weight.copy_((part / scale[:, None]).round())
        else:
            self.register_buffer("weight", matrix.to(getattr(torch, weights)))
            self.scale = None


class CompactLinear(CompactMatrix):
    """Stands in for a linear layer, in inference."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, weights: Weights) -> None:
        super().__init__(linear.weight, weights)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., m] -> [..., n]."""
        outputs = F.linear(inputs, self.weight.to(inputs.dtype))
        if self.scale is not None:
            outputs = outputs * self.scale
        return outputs if self.bias is None else outputs + self.bias


class CompactEmbedding(CompactMatrix):
    """Stands in for a table of embeddings, in inference."""

    def __init__(self, embedding: nn.Embedding, weights: Weights) -> None:
        super().__init__(embedding.weight, weights)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] int64 -> [..., m] float32."""
        rows = self.weight[ids].float()
        return rows if self.scale is None else rows * self.scale[ids][..., None]


def compact(module: nn.Module, weights: Weights) -> None:
    """Replaces all linear layers and embeddings in `module`, one after the other; it is for inference from then on.

    What else the module has is copied, so that nothing of it stays in the file that it may have been mapped from.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, CompactLinear(child, weights))
        elif isinstance(child, nn.Embedding):
            setattr(module, name, CompactEmbedding(child, weights))
        elif not isinstance(child, CompactMatrix):
            compact(child, weights)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.clone()
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.clone())


def stored_weights(module: nn.Module) -> Weights:
    """How the matrices of a module are stored."""
    names: dict[torch.dtype, Weights] = {torch.int8: "int8", torch.bfloat16: "bfloat16"}
    for child in module.modules():
        if isinstance(child, CompactMatrix):
            return names[child.weight.dtype]
    return "float32"
