"""InfoNCE between two descriptions of the same things (Equations 4.2 and 6.1)."""

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor


def info_nce(first: Tensor, second: Tensor, temperature: float | Tensor = 0.2, gather: bool = True) -> Tensor:
    """Symmetric InfoNCE, a scalar: each description must find its own thing's other one among those of all things.

    It is the mean over both directions. Descriptions are scaled to unit length. The candidates are the other branch's
    descriptions of all things of the batch, over all processes; under gradient accumulation, of the micro batch alone:
    4 micro batches of 64 have 63 negatives, not 255. The mean over processes of what they return, and of its gradient,
    is what one process would have with all things.

    Args:
        first: [B, d], one description of each thing.
        second: [B, d], the other.
        temperature: tau; a tensor is learned.
        gather: look among the things of all processes, which must have equally many.
    """
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    all_first, all_second, begin = first, second, 0
    if gather and torch.distributed.is_available() and torch.distributed.is_initialized():
        all_first, all_second = (_Gather.apply(part) for part in (first, second))
        begin = torch.distributed.get_rank() * len(first)
    own = torch.arange(begin, begin + len(first), device=first.device)
    forth = F.cross_entropy(first @ all_second.mT / temperature, own)
    back = F.cross_entropy(second @ all_first.mT / temperature, own)
    return (forth + back) / 2


class _Gather(torch.autograd.Function):
    """[B, d] of every process -> [processes * B, d], of which each process gets the gradient of all.

    PyTorch's own differentiable gather has another name in each of the versions that we support.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        begin = torch.distributed.get_rank() * ctx.rows
        return total[begin : begin + ctx.rows]
