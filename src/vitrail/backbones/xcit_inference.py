"""XCiT for inference: the same function in less time and memory."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from vitrail.backbones.features import Features, check_layers
from vitrail.backbones.xcit import XCiT
from vitrail.layers.blocks import ClassAttentionBlock, XCiTBlock
from vitrail.layers.inference import InferenceFeedForward, InferenceLocalInteraction, InferencePatches, add_branch
from vitrail.layers.inference_attention import InferenceAttention, InferenceClassAttention
from vitrail.layers.patches import ConvolutionalPatches


class InferenceBlock(nn.Module):
    """An XCiT block that overwrites its tokens (see `add_branch`)."""

    def __init__(self, block: XCiTBlock, covariance_from: int | None) -> None:
        super().__init__()
        self.attention: InferenceAttention | None = None
        if block.attention is not None:
            self.attention = InferenceAttention(
                block.attention, block.attention_norm, block.attention_scale, covariance_from
            )
        self.local: InferenceLocalInteraction | None = None
        if block.local is not None:
            self.local = InferenceLocalInteraction(block.local, block.local_norm, block.local_scale)
        self.feed_forward_norm = block.feed_forward_norm
        self.feed_forward = InferenceFeedForward(block.feed_forward, block.feed_forward_scale)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, h * w, d], to be overwritten -> tokens [B, h * w, d] leaving the block."""
        if self.attention is not None:
            tokens = add_branch(tokens, self.attention)
        if self.local is not None:
            tokens = add_branch(tokens, partial(self.local, grid=grid))
        each = add_branch(tokens.flatten(0, 1), lambda x: self.feed_forward(self.feed_forward_norm(x)))
        return each.view_as(tokens)


class InferenceXCiT(nn.Module):
    """What `optimize_for_inference` makes of an XCiT: the same answers to the same questions, no gradients."""

    def __init__(self, model: XCiT, covariance_from: int | None) -> None:
        super().__init__()
        self.config = model.config
        self.width, self.patch_size, self.num_classes = model.width, model.patch_size, model.num_classes
        patches = model.patches
        self.patches = InferencePatches(patches) if isinstance(patches, ConvolutionalPatches) else patches
        self.positions = model.positions
        blocks = cast(Iterable[XCiTBlock], model.blocks)
        class_blocks = cast(Iterable[ClassAttentionBlock], model.class_blocks)
        self.blocks = nn.ModuleList(InferenceBlock(block, covariance_from) for block in blocks)
        if model.class_blocks:
            self.class_token, self.norm = model.class_token, model.norm
        self.class_blocks = nn.ModuleList(InferenceClassAttention(block) for block in class_blocks)
        self.head = model.head

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, H, W] -> patch tokens with their positions, [B, h * w, d], and the grid (h, w)."""
        tokens = self.patches(images)
        if not isinstance(self.patches, InferencePatches):
            tokens = tokens.permute(0, 2, 3, 1).contiguous()
        return self.positions.add_to(tokens).flatten(1, 2), (tokens.shape[1], tokens.shape[2])

    def gather(self, patches: Tensor) -> Tensor:
        """Patch tokens [B, N, d] leaving the last block -> class token [B, d] by class attention."""
        if not self.class_blocks:
            return patches.mean(dim=1)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        for number, block in enumerate(self.class_blocks):
            tokens = block(tokens, last=number == len(self.class_blocks) - 1)
        return self.norm(tokens[:, 0])

    @torch.no_grad()
    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """[B, 3, H, W] -> Features, as of XCiT."""
        check_layers(layers, len(self.blocks))
        tokens, grid = self.embed(images)
        outputs = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, grid)
            if number in layers:
                outputs[number] = tokens.clone()
        return Features(tokens, self.gather(tokens), grid, tuple(outputs[number] for number in layers))

    def optimize_for_inference(self) -> "InferenceXCiT":
        """Itself, as it is."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        return self.head(self.forward_features(images).class_token)


@torch.no_grad()
def optimize_for_inference(model: XCiT, covariance_from: int | None = None) -> InferenceXCiT:
    """A copy of `model` for inference; `model` stays as it is.

    Batch norms and LayerScale are folded into the layers beside them, cross-covariance attention takes the form that
    is cheapest for the number of tokens, and pictures and tokens are worked on in pieces. It computes what
    `model.eval()` does to rounding, on any device; in bfloat16 the sums over tokens are float32.

    Args:
        model: in any mode; its batch norms count as in evaluation.
        covariance_from: tokens, more than channels, from which on attention takes its covariance form; by default
            where it saves time.
    """
    return InferenceXCiT(copy.deepcopy(model), covariance_from).requires_grad_(False).eval()
