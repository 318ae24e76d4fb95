"""Tokens to indices of centroids, and back (Section 5.3.1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# Tokens whose distances to all centroids are held at once where no gradient is needed.
_CHUNK = 8192


class Quantized(NamedTuple):
    """What a quantizer makes of tokens [..., d].

    Attributes:
        vectors: [..., M, D], the chosen centroids, of unit length; their gradient goes straight to the projection.
        indices: [..., M] int64, which they are.
        loss: scalar, embedding loss + `commitment` * commitment loss, the mean over tokens, sub-vectors and dimensions.
    """

    vectors: Tensor
    indices: Tensor
    loss: Tensor


class ProductQuantizer(nn.Module):
    """M sub-vectors of a token, each replaced by the nearest of V centroids of its own (Jegou et al., 2010).

    Tokens are projected to M x D dimensions; sub-vectors and centroids are scaled to unit length, so that the nearest
    centroid is the one of the largest cosine (Section 5.4.1, after Yu et al., 2021). With M = 1 this is VQ.

    Centroids learn by the embedding loss |sg(z) - c|^2 and the projection by the commitment loss |z - sg(c)|^2 (Oord et
    al., 2017). In training, `usage` follows how often each centroid is chosen; `revive` moves those that hardly are.

    Args:
        width: d of the tokens.
        parts: M.
        centroids: V.
        part_width: D.
        commitment: weight of the commitment loss; 0.25 is VQ-VAE's.
        usage_decay: of the moving average of the usage, a training step.
        dead_below: a centroid used less than this fraction of its fair share 1 / V is dead.
    """

    usage: Tensor

    def __init__(
        self,
        width: int,
        parts: int,
        centroids: int = 256,
        part_width: int = 8,
        commitment: float = 0.25,
        usage_decay: float = 0.99,
        dead_below: float = 0.1,
    ) -> None:
        super().__init__()
        self.parts, self.centroids, self.part_width = parts, centroids, part_width
        self.commitment, self.usage_decay, self.dead_below = commitment, usage_decay, dead_below
        self.projection = nn.Linear(width, parts * part_width)
        self.codebook = nn.Parameter(F.normalize(torch.randn(parts, centroids, part_width), dim=2))
        self.register_buffer("usage", torch.full((parts, centroids), 1 / centroids))

    def unit_codebook(self) -> Tensor:
        """The centroids, [M, V, D], of unit length."""
        return F.normalize(_full_precision(self.codebook), dim=2)

    def project(self, tokens: Tensor) -> Tensor:
        """[..., d] -> sub-vectors of unit length, [..., M, D]."""
        vectors = _full_precision(self.projection(tokens)).unflatten(-1, (self.parts, self.part_width))
        return F.normalize(vectors, dim=-1)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Sub-vectors [..., M, D] -> indices of the centroids of the largest cosine, [..., M] int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            codebook = self.unit_codebook().mT
            chunks = vectors.flatten(0, -3).transpose(0, 1).split(_CHUNK, dim=1)
            indices = torch.cat([(chunk @ codebook).argmax(dim=2) for chunk in chunks], dim=1)
        return indices.T.reshape(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices [..., m] of the first m <= M sub-vectors -> centroids [..., m, D], of unit length."""
        first = torch.arange(indices.shape[-1], device=indices.device) * self.centroids
        return F.embedding(indices + first, self.unit_codebook().flatten(0, 1))

    def forward(self, tokens: Tensor) -> Quantized:
        """[..., d] -> the nearest centroids, their indices and the loss; in training, takes note of the usage."""
        vectors = self.project(tokens)
        indices = self.nearest(vectors)
        chosen = self.lookup(indices)
        embedding = (chosen - vectors.detach()).square().mean()
        commitment = (vectors - chosen.detach()).square().mean()
        if self.training:
            with torch.no_grad():
                self.usage.lerp_(centroid_shares(indices, self.centroids).to(self.usage), 1 - self.usage_decay)
        # The difference is zero, exactly: what leaves are the centroids, and the gradient goes to the sub-vectors.
        straight_through = chosen.detach() + (vectors - vectors.detach())
        return Quantized(straight_through, indices, embedding + self.commitment * commitment)

    @torch.no_grad()
    def revive(self, step: int) -> None:
        """Moves each dead centroid beside a much used one, which it then shares the vectors of.

        The least used centroid goes to the most used, the second least to the second most, and so on, as long as the
        former are dead and the latter are not. All depends on the centroids, their usage and `step`, which every
        process of a run has alike, and a resumed run too.
        """
        order = self.usage.argsort(dim=1, descending=True, stable=True)
        half = self.centroids // 2
        busy, idle = order[:, :half], order.flip(1)[:, :half]
        limit = self.dead_below / self.centroids
        share = self.usage.gather(1, busy) / 2
        moved = (self.usage.gather(1, idle) < limit) & (share > limit)

        codebook = self.codebook
        whole = codebook.full_tensor() if isinstance(codebook, DTensor) else codebook
        noise = torch.randn(self.parts, half, self.part_width, generator=torch.Generator().manual_seed(step)).to(whole)
        from_busy, to_idle = (numbers[..., None].expand_as(noise) for numbers in (busy, idle))
        beside = F.normalize(F.normalize(whole, dim=2).gather(1, from_busy) + 0.01 * noise, dim=2)
        new = whole.scatter(1, to_idle, torch.where(moved[..., None], beside, whole.gather(1, to_idle)))
        if isinstance(codebook, DTensor):  # sharded: every process has computed all of it, and keeps its share
            new = distribute_tensor(new, codebook.device_mesh, codebook.placements, src_data_rank=None)
        codebook.copy_(new)
        self.usage.scatter_(1, idle, torch.where(moved, share, self.usage.gather(1, idle)))
        self.usage.scatter_(1, busy, torch.where(moved, share, self.usage.gather(1, busy)))

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone: only the direction of a centroid counts."""
        return {"codebook"}


def keep_parts(vectors: Tensor, kept: Tensor) -> Tensor:
    """Sub-vectors [B, ..., M, D] with those from number `kept` [B] of each sample on set to zero: nested quantization.

    Zero stands for what is not known: no centroid has that length.
    """
    parts = torch.arange(vectors.shape[-2], device=vectors.device)
    mask = parts < kept.view(-1, *[1] * (vectors.ndim - 2))  # [B, 1, ..., M]
    return vectors * mask.unsqueeze(-1).to(vectors.dtype)


def draw_kept(samples: int, parts: int, device: torch.device) -> Tensor:
    """How many sub-vectors each sample keeps in nested training, [samples]: half of them all M, the others 1 to M - 1.

    Drawn evenly from 1 to M, the last sub-vectors would hardly ever be seen, and learn little.
    """
    return torch.randint(1, max(2 * parts - 1, 2), (samples,), device=device).clamp(max=parts)


def centroid_shares(indices: Tensor, centroids: int) -> Tensor:
    """Indices [..., M] -> how often each of V centroids was chosen, [M, V] float32, rows that sum to 1."""
    parts = indices.shape[-1]
    first = torch.arange(parts, device=indices.device) * centroids
    counts = (indices + first).flatten().bincount(minlength=parts * centroids).view(parts, centroids)
    return counts.float() / (indices.numel() // parts)


def perplexity(shares: Tensor) -> Tensor:
    """Shares [M, V] -> exp of their entropy, [M]: V where all centroids are used alike, 1 where only one is."""
    return torch.special.entr(shares).sum(dim=1).exp()


def _full_precision(tensor: Tensor) -> Tensor:
    """At least float32: which centroid is nearest must not depend on the precision of training."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
