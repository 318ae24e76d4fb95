"""ViT, the vision transformer, and DeiT: what XCiT is compared with, and the network of the systems to come."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.backbones.features import Backbone, Features, check_heads, check_layers
from vitrail.config import check_choices, check_range
from vitrail.errors import VitrailError
from vitrail.layers.attention import SelfAttention
from vitrail.layers.blocks import NORM_EPSILON, TransformerBlock
from vitrail.layers.efficient_attention import (
    AxialAttention,
    EfficientAttention,
    LinformerAttention,
    SpatialReductionAttention,
)
from vitrail.layers.patches import LinearPatches
from vitrail.layers.positions import LearnedPositions, SinusoidalPositions


@dataclass(frozen=True)
class ViTConfig:
    """A ViT; the defaults are ViT-S/16, which is DeiT-S."""

    width: int = 384
    """Channels of a token, d."""
    depth: int = 12
    """Blocks of attention and feed-forward."""
    heads: int = 6
    """Heads of the attention."""
    patch_size: int = 16
    """Pixels a side of a patch."""
    image_size: int = 224
    """Pixels a side of the pictures that learned positions (and Linformer) are made for."""
    pooling: Literal["class_token", "mean"] = "class_token"
    """What describes the whole image: the class token, or the mean of the patches."""
    class_token: bool = True
    """Whether there is a class token; the mean of the patches does with or without one."""
    distillation_token: bool = False
    """DeiT's second class token with a head of its own, which learns from a teacher."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """A vector for each place, interpolated where the grid differs, or XCiT's encoding for any grid (Section 3.5.4)."""
    attention: Literal[
        "softmax", "spatial_reduction_average", "spatial_reduction_convolutional", "linformer", "efficient", "axial"
    ] = "softmax"
    """Attention among the tokens: full, or an efficient variant (Table 3.3)."""
    reduction: int = 2
    """R of spatial reduction attention: patches a side of a window of keys."""
    layer_scale: float | None = None
    """Initial scale of the residual branches; None: not scaled."""
    drop_path: float = 0.0
    """Stochastic depth: the rate in the last block."""
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    """How that rate comes about: linearly from 0 in the first block, or the same in every block."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "width", "depth", "heads", "patch_size", "image_size", "reduction", least=1)
        check_range(self, "layer_scale", least=0)
        check_range(self, "drop_path", least=0, below=1)

    def build(self, num_classes: int = 0) -> "ViT":
        """The network with fresh weights; without classes its output is the class token."""
        return ViT(self, num_classes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a picture of `image_size`."""
        side = -(-self.image_size // self.patch_size)
        return side, side


class ViT(Backbone):
    """Images [B, 3, H, W] of any height and width -> logits [B, num_classes], or class tokens [B, d] without classes.

    Heights and widths that are not multiples of the patch size P make a grid of (ceil(H / P), ceil(W / P)) patches:
    the picture counts as continued by zeros.

    Raises:
        VitrailError: the configuration contradicts itself.
    """

    def __init__(self, config: ViTConfig, num_classes: int = 0) -> None:
        super().__init__()
        check_heads(config.width, config.heads)
        if config.pooling == "class_token" and not config.class_token:
            raise VitrailError("A ViT without a class token cannot pool by it; set pooling to mean.")
        if config.pooling == "mean" and config.distillation_token:
            raise VitrailError("A distillation token stands beside a class token; set pooling to class_token.")
        self.config = config
        self.width = config.width
        self.patch_size = config.patch_size
        self.num_classes = num_classes
        self.leading = config.class_token + config.distillation_token
        self.patches = LinearPatches(config.width, config.patch_size)
        self.class_token: nn.Parameter | None = None
        if config.class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.distillation_token: nn.Parameter | None = None
        if config.distillation_token:
            self.distillation_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions: LearnedPositions | SinusoidalPositions
        if config.positions == "learned":
            self.positions = LearnedPositions(config.width, config.grid, self.leading)
        else:
            self.positions = SinusoidalPositions(config.width)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, _attention(config), config.layer_scale, _drop_path(config, number))
            for number in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.head = self._new_head()
        self.head_distillation = self._new_head() if config.distillation_token else None
        self.reset_parameters()

    def _new_head(self) -> nn.Module:
        return nn.Linear(self.width, self.num_classes) if self.num_classes else nn.Identity()

    def reset_parameters(self) -> None:
        """Linear layers and tokens from a normal distribution of deviation 0.02, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.class_token, self.distillation_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def embed(
        self, images: Tensor, keep: Tensor | None = None, masked: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, H, W] -> tokens with their positions, [B, leading + N, d], the patches last, and the grid (h, w)."""
        picture = self.patches(images)
        grid = (picture.shape[2], picture.shape[3])
        if masked is not None:
            mask, token = masked
            picture = torch.where(mask[:, None], token.to(picture.dtype)[:, None, None], picture)
        patches = (picture + self.positions(*grid)).flatten(2).mT
        if keep is not None:
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, self.width))
        if not self.leading:
            return patches, grid
        leading = torch.cat(
            [token for token in (self.class_token, self.distillation_token) if token is not None], dim=1
        )
        if isinstance(self.positions, LearnedPositions):
            leading = leading + self.positions.before()
        return torch.cat([leading.expand(patches.shape[0], -1, -1), patches], dim=1), grid

    def _encode(
        self,
        images: Tensor,
        layers: Sequence[int] = (),
        keep: Tensor | None = None,
        masked: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[int, int], tuple[Tensor, ...]]:
        """All tokens leaving the last block, before the final norm, the grid, and the patches of the layers."""
        if keep is not None and self.config.attention not in ("softmax", "efficient"):
            raise VitrailError(
                f"The attention {self.config.attention} needs all patches of a picture; a subset of them can be "
                "encoded with softmax or efficient attention."
            )
        tokens, grid = self.embed(images, keep, masked)
        check_layers(layers, len(self.blocks))
        outputs = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, None if keep is not None else grid, self.leading)
            if number in layers:
                outputs[number] = tokens[:, self.leading :]
        return tokens, grid, tuple(outputs[number] for number in layers)

    def forward_features(
        self,
        images: Tensor,
        layers: Sequence[int] = (),
        keep: Tensor | None = None,
        masked: tuple[Tensor, Tensor] | None = None,
    ) -> Features:
        """Patch tokens after the final norm, class token, grid, and the asked-for layers before that norm.

        With mean pooling, the class token is the norm of the mean of the patches, not the mean of the normalised.

        Args:
            images: [B, 3, H, W].
            layers: numbers of blocks, 0-based.
            keep: [B, n] int64, the numbers of the patches to encode, row by row from 0; None: all of them. Patches
                keep their positions, and come out in the order given. The features' grid stays that of all patches.
            masked: [B, h, w] bool and [d]: patches that are replaced, before their positions are added, by a token.

        Raises:
            VitrailError: no such layer, or a subset where the attention needs all patches.
        """
        tokens, grid, outputs = self._encode(images, layers, keep, masked)
        normed = self.norm(tokens)
        if self.config.pooling == "class_token":
            class_token = normed[:, 0]
        else:
            class_token = self.norm(tokens[:, self.leading :].mean(dim=1))
        return Features(normed[:, self.leading :], class_token, grid, outputs)

    def distilled_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> logits for the labels and logits for the teacher, the same without a distillation token."""
        if self.head_distillation is None:
            logits = self.head(self.forward_features(images).class_token)
            return logits, logits
        class_token, distillation_token = self.norm(self._encode(images)[0][:, :2]).unbind(dim=1)
        return self.head(class_token), self.head_distillation(distillation_token)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]; with a distillation token the mean of what both tokens give."""
        if self.head_distillation is None:
            return self.head(self.forward_features(images).class_token)
        logits, distilled = self.distilled_logits(images)
        return (logits + distilled) / 2

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, besides vectors."""
        return {"class_token", "distillation_token", "positions.table"} & {name for name, _ in self.named_parameters()}

    @property
    def layer_count(self) -> int:
        """Layers for layer-wise learning-rate decay: the patches, the blocks, the head."""
        return len(self.blocks) + 2

    def layer_of(self, name: str) -> int:
        """The layer, 0 .. layer_count - 1, that the parameter `name` belongs to."""
        room, _, rest = name.partition(".")
        if room == "blocks":
            return 1 + int(rest.split(".")[0])
        return self.layer_count - 1 if room in ("norm", "head", "head_distillation") else 0


def _drop_path(config: ViTConfig, number: int) -> float:
    if config.drop_path_schedule == "constant" or config.depth == 1:
        return config.drop_path
    return config.drop_path * number / (config.depth - 1)


def _attention(config: ViTConfig) -> nn.Module:
    width, heads = config.width, config.heads
    match config.attention:
        case "softmax":
            return SelfAttention(width, heads)
        case "spatial_reduction_average":
            return SpatialReductionAttention(width, heads, config.reduction, "average")
        case "spatial_reduction_convolutional":
            return SpatialReductionAttention(width, heads, config.reduction, "convolutional")
        case "linformer":
            return LinformerAttention(width, heads, config.grid[0] * config.grid[1])
        case "efficient":
            return EfficientAttention(width, heads)
        case "axial":
            return AxialAttention(width, heads)


# Width, heads, blocks, and which patch sizes exist at which image sizes in timm.
_SIZES: dict[str, tuple[int, int, int, dict[int, tuple[int, ...]]]] = {
    "tiny": (192, 3, 12, {16: (224, 384)}),
    "small": (384, 6, 12, {32: (224, 384), 16: (224, 384), 8: (224,)}),
    "base": (768, 12, 12, {32: (224, 384), 16: (224, 384), 8: (224,)}),
    "large": (1024, 16, 24, {32: (224, 384), 16: (224, 384), 14: (224,)}),
    "huge": (1280, 16, 32, {14: (224,)}),
}


def _preset(size: str, patch_size: int, image_size: int, distilled: bool = False) -> ViTConfig:
    width, heads, depth, _ = _SIZES[size]
    return ViTConfig(width, depth, heads, patch_size, image_size, distillation_token=distilled)


VITS: dict[str, ViTConfig] = (
    {
        f"vit_{size}_patch{patch_size}_{image_size}": _preset(size, patch_size, image_size)
        for size, (*_, patch_sizes) in _SIZES.items()
        for patch_size, image_sizes in patch_sizes.items()
        for image_size in image_sizes
    }
    | {f"deit_{size}_patch16_224": _preset(size, 16, 224) for size in ("tiny", "small", "base")}
    | {"deit_base_patch16_384": _preset("base", 16, 384)}
    | {f"deit_{size}_distilled_patch16_224": _preset(size, 16, 224, True) for size in ("tiny", "small", "base")}
    | {"deit_base_distilled_patch16_384": _preset("base", 16, 384, True)}
)
