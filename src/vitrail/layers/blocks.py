"""The blocks that networks are stacked from: residual branches around attention, local interaction, feed-forward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitrail.layers.attention import ClassAttention, CrossCovarianceAttention, pick

NORM_EPSILON = 1e-6


class StochasticDepth(nn.Module):
    """In training, drops a residual branch for a whole sample with probability `rate`, and scales up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or self.rate == 0:
            return branch
        keep = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * keep.to(branch.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"rate={self.rate}"


def quick_gelu(tokens: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which stands for the GELU in CLIP's first models."""
    return tokens * torch.sigmoid(1.702 * tokens)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, token by token; hidden width 4 d by default (Section 3.3.3)."""

    def __init__(
        self, width: int, ratio: float = 4, activation: Callable[[Tensor], Tensor] = nn.functional.gelu
    ) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Linear(width, int(width * ratio))
        self.contract = nn.Linear(int(width * ratio), width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        return self.contract(self.activation(self.expand(tokens)))


class LocalPatchInteraction(nn.Module):
    """LPI: two depth-wise 3x3 convolutions over the grid of patches, GELU and batch norm between (Section 3.3.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, h * w, d] -> [B, h * w, d] for a grid (h, w)."""
        # Channels last, by strides that say so also for one image: the convolutions then copy nothing.
        picture = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        picture = self.convolution2(self.norm(nn.functional.gelu(self.convolution1(picture))))
        return picture.flatten(2).mT


class TransformerBlock(nn.Module):
    """Attention among tokens, then feed-forward, each after a LayerNorm, as in ViT.

    Args:
        width: d.
        attention: `SelfAttention` or an efficient variant.
        layer_scale: initial value of the learned scale of each branch; None: no scale.
        drop_path: rate of stochastic depth.
        norm_epsilon: added to the variance in the LayerNorms.
        activation: between the layers of the feed-forward.
    """

    def __init__(
        self,
        width: int,
        attention: nn.Module,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm_epsilon: float = NORM_EPSILON,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.feed_forward = FeedForward(width, activation=activation)
        self.attention_scale: nn.Parameter | None = None
        self.feed_forward_scale: nn.Parameter | None = None
        if layer_scale is not None:
            self.attention_scale = nn.Parameter(torch.full((width,), layer_scale))
            self.feed_forward_scale = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = StochasticDepth(drop_path)

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int] | None = None,
        leading: int = 0,
        only: Tensor | None = None,
    ) -> Tensor:
        """[B, leading + N, d] -> the same shape.

        Args:
            tokens: N patches, with `leading` other tokens before them.
            grid: (h, w) of the patches, row by row; None where they are a subset of a picture's.
            leading: how many tokens stand before the patches.
            only: [B] int64, the number of the token that is wanted of each sample, as of a last block: then
                -> [B, 1, d], for a small part of the work. The attention must be `SelfAttention`.
        """
        normed = self.attention_norm(tokens)
        if only is None:
            branch = self.attention(normed, grid, leading)
        else:
            branch, tokens = self.attention(normed, grid, leading, only), pick(tokens, only)
        tokens = tokens + self.drop_path(branch if self.attention_scale is None else self.attention_scale * branch)
        branch = self.feed_forward(self.feed_forward_norm(tokens))
        return tokens + self.drop_path(branch if self.feed_forward_scale is None else self.feed_forward_scale * branch)


class XCiTBlock(nn.Module):
    """XCA, then local patch interaction, then feed-forward, each after a LayerNorm and scaled (Figure 3.1).

    Args:
        width: d.
        heads: of XCA.
        layer_scale: initial value of the learned scale of each branch.
        drop_path: rate of stochastic depth.
        cross_covariance, local_interaction: False leaves that branch out (Table 3.8).
        normalize, learned_temperature: of XCA (Table 3.8).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layer_scale: float = 1.0,
        drop_path: float = 0.0,
        cross_covariance: bool = True,
        local_interaction: bool = True,
        normalize: bool = True,
        learned_temperature: bool = True,
    ) -> None:
        super().__init__()
        self.attention: CrossCovarianceAttention | None = None
        if cross_covariance:
            self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
            self.attention = CrossCovarianceAttention(width, heads, normalize, learned_temperature)
            self.attention_scale = nn.Parameter(torch.full((width,), layer_scale))
        self.local: LocalPatchInteraction | None = None
        if local_interaction:
            self.local_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
            self.local = LocalPatchInteraction(width)
            self.local_scale = nn.Parameter(torch.full((width,), layer_scale))
        self.feed_forward_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.feed_forward = FeedForward(width)
        self.feed_forward_scale = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, h * w, d] -> [B, h * w, d] for a grid (h, w)."""
        if self.attention is not None:
            tokens = tokens + self.drop_path(self.attention_scale * self.attention(self.attention_norm(tokens)))
        if self.local is not None:
            tokens = tokens + self.drop_path(self.local_scale * self.local(self.local_norm(tokens), grid))
        return tokens + self.drop_path(self.feed_forward_scale * self.feed_forward(self.feed_forward_norm(tokens)))


class ClassAttentionBlock(nn.Module):
    """Class attention and feed-forward for the class token alone, as the official XCiT models compute them.

    Two things are not what the figure suggests, and the weights were trained with them: the second LayerNorm replaces
    the tokens instead of opening a branch, and the patch tokens take part in both residual sums, so that they leave
    the block doubled.

    Args:
        width: d.
        heads: of the class attention.
        layer_scale: initial value of the learned scale of each branch.
        normalize_patches: whether the second LayerNorm covers the patch tokens too, or the class token alone.
    """

    def __init__(self, width: int, heads: int, layer_scale: float, normalize_patches: bool) -> None:
        super().__init__()
        self.normalize_patches = normalize_patches
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attention = ClassAttention(width, heads)
        self.attention_scale = nn.Parameter(torch.full((width,), layer_scale))
        self.feed_forward_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.feed_forward = FeedForward(width)
        self.feed_forward_scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1 + N, d] -> [B, 1 + N, d], the class token first."""
        normed = self.attention_norm(tokens)
        updates = torch.cat([self.attention(normed), normed[:, 1:]], dim=1)
        tokens = tokens + self.attention_scale * updates
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        class_token = self.feed_forward_norm(class_token)
        if self.normalize_patches:
            patches = self.feed_forward_norm(patches)
        class_token = class_token + self.feed_forward_scale * self.feed_forward(class_token)
        return torch.cat([class_token, 2 * patches], dim=1)
