"""A tiny codec with random weights, whose prior nevertheless depends on every known token and on every position."""

from types import SimpleNamespace
from typing import Self

import torch
from torch import Tensor, nn

from vitrail.compress import Codec


class TinyAutoencoder(nn.Module):
    """Indices from the mean colour of a square, through a random linear map; the decoder paints squares."""

    def __init__(self, factor: int, parts: int, centroids: int) -> None:
        super().__init__()
        self.factor, self.parts, self.centroids = factor, parts, centroids
        self.config = SimpleNamespace(nested=True)
        generator = torch.Generator().manual_seed(parts)
        self.project = nn.Parameter(torch.randn(3, parts, generator=generator))
        self.colours = nn.Parameter(torch.rand(parts, centroids, 3, generator=generator))

    def encode(self, images: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(images, self.factor).permute(0, 2, 3, 1)
        return (torch.sigmoid(8 * (means - 0.5) @ self.project) * self.centroids).long().clamp(0, self.centroids - 1)

    def decode(self, indices: Tensor) -> Tensor:
        parts = torch.arange(indices.shape[3], device=indices.device)
        means = self.colours[parts, indices].mean(dim=3).permute(0, 3, 1, 2)
        return means.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def optimize_for_inference(self) -> Self:
        return self


class TinyPrior(nn.Module):
    """One wide convolution of embeddings, and logits that are far from uniform."""

    def __init__(self, parts: int, centroids: int, width: int = 16, reach: int = 4) -> None:
        super().__init__()
        self.parts, self.centroids = parts, centroids
        generator = torch.Generator().manual_seed(100 + parts)
        self.embedding = nn.Parameter(torch.randn(parts, centroids, width, generator=generator))
        self.mask = nn.Parameter(torch.randn(width, generator=generator))
        side = 2 * reach + 1
        self.kernel = nn.Parameter(torch.randn(width, width, side, side, generator=generator) / 10)
        self.heads = nn.Parameter(torch.randn(width, parts * centroids, generator=generator))

    def context(self, indices: Tensor, known: Tensor) -> Tensor:
        given = indices.shape[3]
        parts = torch.arange(given, device=indices.device)
        tokens = torch.where(known[..., None], self.embedding[parts, indices].sum(dim=3), self.mask)
        mixed = nn.functional.conv2d(tokens.permute(0, 3, 1, 2), self.kernel, padding="same").tanh()
        return mixed.permute(0, 2, 3, 1)

    def logits(self, context: Tensor, given: int) -> Tensor:
        return (context @ self.heads).unflatten(-1, (self.parts, self.centroids))[..., :given, :]

    def forward(self, indices: Tensor, known: Tensor) -> Tensor:
        return self.logits(self.context(indices, known), indices.shape[3])

    def optimize_for_inference(self) -> Self:
        return self


def make_codec(parts: int = 2, centroids: int = 16, factor: int = 4) -> Codec:
    """A codec of the same weights every time."""
    marginals = 1 + torch.arange(parts * centroids).view(parts, centroids) * 7 % 40
    return Codec(TinyAutoencoder(factor, parts, centroids), TinyPrior(parts, centroids), marginals, "tiny")
