"""InfoNCE between two descriptions of the same images (Equation 4.2)."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def info_nce(first: Tensor, second: Tensor, temperature: float = 0.2, gather: bool = True) -> Tensor:
    """Symmetric InfoNCE, a scalar: each description must find its own image's other one among those of all images.

    Descriptions are scaled to unit length. The candidates are the other branch's descriptions of all images of the
    batch, over all processes; under gradient accumulation, of the micro batch alone: 4 micro batches of 64 have 63
    negatives, not 255. The mean over processes of what they return, and of its gradient, is what one process would
    have with all images.

    Args:
        first: [B, d], one description of each image.
        second: [B, d], the other.
        temperature: tau.
        gather: look among the images of all processes, which must have equally many.
    """
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    all_first, all_second, begin = first, second, 0
    if gather and torch.distributed.is_available() and torch.distributed.is_initialized():
        all_first, all_second = (torch.cat(all_gather(part.contiguous())) for part in (first, second))
        begin = torch.distributed.get_rank() * len(first)
    own = torch.arange(begin, begin + len(first), device=first.device)
    forth = F.cross_entropy(first @ all_second.mT / temperature, own)
    back = F.cross_entropy(second @ all_first.mT / temperature, own)
    return (forth + back) / 2
