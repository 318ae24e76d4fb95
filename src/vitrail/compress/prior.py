"""The masked image model: what the indices of hidden tokens may be, given those that are known (Section 5.3.2)."""

import copy
import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.compress.trunk import InferenceTrunk, Trunk
from vitrail.config import check_choices, check_range
from vitrail.errors import VitrailError
from vitrail.layers.product_quantizer import centroid_shares

# What a centroid that was never seen in training counts for, so that it can be coded all the same.
_UNSEEN = 1e-6


@dataclass(frozen=True)
class PriorConfig:
    """The masked image model; the defaults are the thesis's XCiT-L12 (Section 5.4.1)."""

    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """XCiT blocks."""
    heads: int = 16
    """Of cross-covariance attention."""
    embedding: Literal["sum", "concatenation"] = "sum"
    """How the embeddings of a token's M indices become one vector."""
    drop_path: float = 0.0
    """Rate of stochastic depth."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "width", "depth", "heads", least=1)
        check_range(self, "drop_path", least=0, below=1)

    def build(self, parts: int, centroids: int) -> "Prior":
        """The network for M sub-vectors of V centroids each, with fresh weights."""
        return Prior(self, parts, centroids)


class Prior(nn.Module):
    """Indices, some of them hidden -> a distribution over the centroids for every token and sub-vector.

    All of it follows its parameters' precision: after `.double()` every operation is in float64.

    Attributes:
        parts: M.
        centroids: V.
        marginal: [M, V], how often each centroid was chosen in training (a moving average): the distribution of
            tokens without context, those of the first stage.
    """

    marginal: Tensor

    def __init__(self, config: PriorConfig, parts: int, centroids: int) -> None:
        super().__init__()
        self.config, self.parts, self.centroids = config, parts, centroids
        summed = config.embedding == "sum"
        if not summed and config.width % parts:
            raise VitrailError(
                f"{config.width} channels cannot be shared out among {parts} concatenated embeddings; "
                "make the prior's width a multiple of the number of sub-vectors, or sum the embeddings."
            )
        self.embedding = nn.Embedding(parts * centroids, config.width if summed else config.width // parts)
        nn.init.normal_(self.embedding.weight, std=parts**-0.5 if summed else 1.0)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        self.trunk = Trunk(config.width, config.depth, config.heads, config.drop_path)
        # M linear heads, side by side in one matrix.
        self.heads = nn.Linear(config.width, parts * centroids)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.heads.weight, std=0.02)
        nn.init.zeros_(self.heads.bias)
        self.register_buffer("marginal", torch.full((parts, centroids), 1 / centroids))

    def forward(self, indices: Tensor, known: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits [B, h, w, m, V] of all tokens, which depend on the indices of the known ones alone.

        Args:
            indices: [B, h, w, m] int64, of the first m <= M sub-vectors; those of hidden tokens may be anything in
                0..V - 1.
            known: [B, h, w] bool.
            kept: [B], how many sub-vectors of each sample are given (the others have no logits that mean anything);
                None: all m.
        """
        return self.logits(self.context(indices, known, kept), indices.shape[3])

    def context(self, indices: Tensor, known: Tensor, kept: Tensor | None = None) -> Tensor:
        """[B, h, w, d], from which `logits` follow token by token; the arguments are those of `forward`."""
        tokens = torch.where(known[..., None], self._embed(indices, kept), self.mask_token)
        return self.trunk(tokens.permute(0, 3, 1, 2))

    def logits(self, context: Tensor, given: int) -> Tensor:
        """Context [..., d] -> logits [..., m, V] of the first m = `given` sub-vectors."""
        return self.heads(context).unflatten(-1, (self.parts, self.centroids))[..., :given, :]

    @torch.no_grad()
    def optimize_for_inference(self) -> "InferencePrior":
        """A copy that computes the same, to rounding, in less time and memory, for inference alone."""
        return InferencePrior(copy.deepcopy(self)).requires_grad_(False).eval()

    def _embed(self, indices: Tensor, kept: Tensor | None) -> Tensor:
        given = indices.shape[3]
        first = torch.arange(given, device=indices.device)
        embedded = self.embedding(indices + first * self.centroids)  # [B, h, w, m, d or d / M]
        if kept is not None:
            embedded = embedded * (first < kept.view(-1, 1, 1, 1))[..., None].to(embedded.dtype)
        if self.config.embedding == "sum":
            return embedded.sum(dim=3)
        return F.pad(embedded, (0, 0, 0, self.parts - given)).flatten(3)

    @torch.no_grad()
    def observe(self, indices: Tensor, decay: float = 0.999) -> None:
        """Moves `marginal` towards the shares of the centroids in `indices` [..., M]."""
        self.marginal.lerp_(centroid_shares(indices, self.centroids).to(self.marginal), 1 - decay)

    def marginal_bits(self, indices: Tensor) -> Tensor:
        """Indices [B, ..., m] -> what each costs under the marginal distribution, in bits, of the same shape."""
        smoothed = self.marginal + _UNSEEN
        costs = -(smoothed / smoothed.sum(dim=1, keepdim=True)).log2()
        first = torch.arange(indices.shape[-1], device=indices.device) * self.centroids
        return costs.flatten()[indices + first]

    @torch.no_grad()
    def stage_bits(self, indices: Tensor, stages: Tensor) -> Tensor:
        """What a grid of indices costs in bits, stage by stage, [B, S], coded as in Equations 5.1 to 5.3.

        The first stage is coded by the marginal distribution, each other one by the model given those before it.

        Args:
            indices: [B, h, w, m] int64.
            stages: [h, w], the stage of each token, 0 to S - 1.
        """
        last = int(stages.max())
        bits = [self.marginal_bits(indices[:, stages == 0]).flatten(1).sum(dim=1)]
        for stage in range(1, last + 1):
            known = (stages < stage).expand(indices.shape[:3])
            costs = index_costs(self(indices, known), indices)[:, stages == stage]
            bits.append(costs.double().flatten(1).sum(dim=1) / math.log(2))
        return torch.stack([stage.double() for stage in bits], dim=1)


class InferencePrior(nn.Module):
    """What `Prior.optimize_for_inference` makes: contexts for large grids, logits where they are wanted."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.parts, self.centroids = prior.parts, prior.centroids
        self.summed = prior.config.embedding == "sum"
        self.embedding, self.mask_token = prior.embedding, prior.mask_token
        self.trunk = InferenceTrunk(prior.trunk)
        self.heads = prior.heads

    @torch.no_grad()
    def context(self, indices: Tensor, known: Tensor) -> Tensor:
        """[B, h, w, d], given indices [B, h, w, m] where `known` [B, h, w]; the others may be anything."""
        tokens = self.mask_token.repeat(*known.shape, 1)
        tokens[known] = self._embed(indices[known])
        return self.trunk(tokens)

    @torch.no_grad()
    def logits(self, context: Tensor, given: int) -> Tensor:
        """Context [..., d] -> logits [..., m, V] of the first m = `given` sub-vectors."""
        rows = given * self.centroids
        return F.linear(context, self.heads.weight[:rows], self.heads.bias[:rows]).unflatten(-1, (given, -1))

    def _embed(self, indices: Tensor) -> Tensor:
        """[n, m] -> [n, d], a sub-vector at a time: those of all, side by side, would be the largest tensor."""
        given = indices.shape[1]
        embedded = (self.embedding(indices[:, part] + part * self.centroids) for part in range(given))
        if self.summed:
            return reduce(Tensor.add_, embedded)
        return F.pad(torch.cat(list(embedded), dim=1), (0, (self.parts - given) * self.embedding.embedding_dim))


def index_costs(logits: Tensor, indices: Tensor) -> Tensor:
    """The cross-entropy of each index in nats, of the shape of `indices` [..., m], by its logits [..., m, V]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, -2), indices.flatten(), reduction="none").view(indices.shape)


class PriorLoss(NamedTuple):
    """The loss of the masked image model.

    Attributes:
        loss: scalar, nats an index: the mean over the masked tokens (and kept sub-vectors) of each sample, then over
            samples. With masking ratios from U(0, 1) that weighs all orders of coding alike.
        bits: scalar, the same in bits.
    """

    loss: Tensor
    bits: Tensor


def masked_cross_entropy(logits: Tensor, indices: Tensor, known: Tensor, kept: Tensor | None = None) -> PriorLoss:
    """Cross-entropy on masked tokens only (Section 5.3.3).

    Args:
        logits: [B, h, w, m, V].
        indices: [B, h, w, m].
        known: [B, h, w] bool; at least one token of each sample is masked.
        kept: [B], how many sub-vectors of each sample count; None: all.
    """
    counts = (~known)[..., None].expand(indices.shape)
    if kept is not None:
        counts = counts & (torch.arange(indices.shape[3], device=indices.device) < kept.view(-1, 1, 1, 1))
    costs = (index_costs(logits, indices) * counts).flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1)
    loss = costs.mean()
    return PriorLoss(loss, loss.detach() / math.log(2))


def draw_uniform(samples: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Which tokens are known, [samples, h, w] bool: a ratio from U(0, 1) of each sample is masked, one token at least.

    The masked ones are drawn without replacement, ceil(ratio * h * w) of them.
    """
    tokens = grid[0] * grid[1]
    masked = (torch.rand(samples, 1, device=device) * tokens).ceil().clamp(1, tokens)
    rank = torch.rand(samples, tokens, device=device).argsort(dim=1).argsort(dim=1)
    return (rank >= masked).view(samples, *grid)


def draw_stage(samples: int, stages: Tensor, device: torch.device) -> Tensor:
    """Which tokens are known, [samples, h, w] bool: for each sample those before a stage drawn from 1 to S - 1.

    Args:
        samples: how many.
        stages: [h, w], the stage of each token, 0 to S - 1, with S > 1; on the CPU.
        device: of the result.

    Raises:
        VitrailError: the grid is so small that all tokens are in stage 0.
    """
    last = int(stages.max())
    if last == 0:
        raise VitrailError(
            f"A grid of {stages.shape[0]} x {stages.shape[1]} tokens in one stage leaves nothing to predict; "
            "train on larger crops."
        )
    drawn = torch.randint(1, last + 1, (samples, 1, 1), device=device)
    return stages.to(device) < drawn
