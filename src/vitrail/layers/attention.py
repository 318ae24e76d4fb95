"""Attention over tokens, over channels, and from one class token. Tokens are [B, N, d] throughout."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pick(tokens: Tensor, only: Tensor) -> Tensor:
    """One token of each sample: [B, N, ...] and its numbers [B] -> [B, 1, ...]."""
    return tokens[torch.arange(len(tokens), device=tokens.device), only][:, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax(Q K^T / sqrt(d_k)) V of every head: [B, h, n, d_k], twice [B, h, N, d_k] -> [B, h, n, d_k].

    Args:
        query, key, value: of one type.
        mask: bool, broadcast to [B, h, n, N]: which keys a query may see; all without.
    """
    few = key.shape[2] <= 1024
    if mask is None and few and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        # Torch's own kernel has no bfloat16 products for CPUs: written out, a step of it takes a third of the time.
        return (query @ (key * key.shape[3] ** -0.5).mT).softmax(dim=3).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, mask)


class SelfAttention(nn.Module):
    """Softmax attention among tokens, Softmax(Q K^T / sqrt(d_k)) V per head (Section 3.3.1).

    O(N^2 d) operations. Its call is that of the efficient variants, which stand in for it; to it alone, where the
    tokens stand makes no difference, unless it is causal.

    Args:
        width: d, a multiple of heads.
        heads: h.
        causal: a token attends to itself and those before it only.
        extra_key_value: one more key and value, learned, that all tokens attend to.
    """

    def __init__(self, width: int, heads: int, causal: bool = False, extra_key_value: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.extra_key: nn.Parameter | None = None
        self.extra_value: nn.Parameter | None = None
        if extra_key_value:
            self.extra_key = nn.Parameter(torch.empty(width))
            self.extra_value = nn.Parameter(torch.empty(width))
            nn.init.trunc_normal_(self.extra_key, std=0.02)
            nn.init.trunc_normal_(self.extra_value, std=0.02)
        self.projection = nn.Linear(width, width)

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int] | None = None,
        leading: int = 0,
        only: Tensor | None = None,
    ) -> Tensor:
        """[B, N, d] -> [B, N, d]; N is any number of tokens, whatever the grid and the tokens before it.

        Args:
            tokens: to mix.
            grid, leading: of no use here.
            only: [B] int64, the number of the token that is wanted of each sample: then -> [B, 1, d].
        """
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.extra_key is not None and self.extra_value is not None:
            key, value = self._prepend(self.extra_key, key), self._prepend(self.extra_value, value)
        mask = None
        if self.causal:
            count, extra = query.shape[2], key.shape[2] - query.shape[2]
            mask = torch.ones(count, extra + count, dtype=torch.bool, device=tokens.device).tril(extra)
        if only is not None:
            query = pick(query.transpose(1, 2), only).transpose(1, 2)
            mask = None if mask is None else mask[only][:, None, None]
        mixed = attend(query, key, value, mask)  # [B, h, N, d/h]
        return self.projection(mixed.transpose(1, 2).flatten(2))

    def _prepend(self, extra: Tensor, tokens: Tensor) -> Tensor:
        """[d], [B, h, N, d/h] -> [B, h, 1 + N, d/h]."""
        extra = extra.to(tokens.dtype).unflatten(0, (self.heads, 1, -1)).expand(len(tokens), -1, -1, -1)
        return torch.cat([extra, tokens], dim=2)


class CrossCovarianceAttention(nn.Module):
    """XCA: attention among the channels of a head (Equation 3.1, Algorithm 3.1).

    Channel i of a head becomes a convex combination of that head's value channels, with weights
    Softmax_j(temperature * <q_i, k_j> / (|q_i| |k_j|)), the inner products taken over all tokens. The thesis divides by
    its temperature; the official models, and we with them, multiply by theirs. O(N d^2 / h) operations.

    Args:
        width: d, a multiple of heads.
        heads: h, the diagonal blocks of the cross-covariance matrix.
        normalize: scale each channel of queries and keys to unit length over the tokens.
        learned_temperature: one temperature per head, learned from 1; otherwise 1.
    """

    def __init__(self, width: int, heads: int, normalize: bool = True, learned_temperature: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.normalize = normalize
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1)) if learned_temperature else None
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, d] -> queries, keys and values before normalisation, [B, h, d/h, N] each."""
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        return query, key, value

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        query, key, value = self.queries_keys_values(tokens)
        if self.normalize:
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        covariance = query @ key.mT  # [B, h, d/h, d/h]
        if self.temperature is not None:
            covariance = covariance * self.temperature
        mixed = covariance.softmax(dim=-1) @ value  # [B, h, d/h, N]
        return self.projection(mixed.permute(0, 3, 1, 2).flatten(2))


class ClassAttention(nn.Module):
    """One-way attention: the first token, the class token, gathers from all tokens (Section 3.3.3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)

    def weights(self, tokens: Tensor) -> Tensor:
        """[B, N, d] -> [B, h, N], what each head of the class token takes from each token; sums to 1 over N."""
        query = self.query(tokens[:, :1]).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key = self.key_value(tokens).chunk(2, dim=2)[0].unflatten(2, (self.heads, -1)).transpose(1, 2)
        return (query @ key.mT * key.shape[-1] ** -0.5).softmax(dim=-1).squeeze(2)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, d] -> [B, 1, d], the class token's update."""
        query = self.query(tokens[:, :1]).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, h, 1, d/h]
        return self.projection(mixed.transpose(1, 2).flatten(2))
