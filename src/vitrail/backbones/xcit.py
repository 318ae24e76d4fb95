"""XCiT, the cross-covariance image transformer (Chapter 3): cost and memory linear in the number of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vitrail.backbones.features import Backbone, Features, check_heads, check_layers
from vitrail.config import check_choices, check_range
from vitrail.layers.blocks import NORM_EPSILON, ClassAttentionBlock, XCiTBlock
from vitrail.layers.patches import ConvolutionalPatches, LinearPatches
from vitrail.layers.positions import SinusoidalPositions

if TYPE_CHECKING:
    from vitrail.backbones.xcit_inference import InferenceXCiT


@dataclass(frozen=True)
class XCiTConfig:
    """An XCiT (Table 3.2); the defaults are XCiT-S12/16."""

    width: int = 384
    """Channels of a token, d."""
    depth: int = 12
    """Blocks of XCA, local patch interaction and feed-forward."""
    heads: int = 8
    """Diagonal blocks of the cross-covariance matrix."""
    patch_size: int = 16
    """Pixels a side of a patch: 8 or 16; any with the linear projection."""
    class_depth: int = 2
    """Class attention blocks; 0 for dense tasks: no class token, no final norm, the mean of the patches instead."""
    layer_scale: float = 1.0
    """Initial scale of the residual branches: 1 up to 12 blocks, 1e-5 for 24."""
    normalize_patches: bool = True
    """Whether class attention blocks normalise the patch tokens too; the official nano models do not."""
    drop_path: float = 0.0
    """Stochastic depth, the same in every block: 0 for T, 0.05 for S12, 0.1 for S24, 0.15 for M24 (Section 3.5.1)."""
    patch_projection: Literal["convolutional", "linear"] = "convolutional"
    """How a patch becomes a token (Table 3.8, linear patch projection)."""
    local_interaction: bool = True
    """Keep local patch interaction (Table 3.8, without LPI)."""
    cross_covariance: bool = True
    """Keep cross-covariance attention (Table 3.8, without XCA)."""
    normalize: bool = True
    """L2-normalise queries and keys (Table 3.8, without normalisation)."""
    learned_temperature: bool = True
    """Learn the temperature of XCA (Table 3.8, without learned temperature)."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "width", "depth", "heads", "patch_size", least=1)
        check_range(self, "class_depth", "layer_scale", least=0)
        check_range(self, "drop_path", least=0, below=1)

    def build(self, num_classes: int = 0) -> "XCiT":
        """The network with fresh weights; without classes its output is the class token."""
        return XCiT(self, num_classes)


class XCiT(Backbone):
    """Images [B, 3, H, W] of any height and width -> logits [B, num_classes], or class tokens [B, d] without classes.

    Heights and widths that are not multiples of the patch size P make a grid of (ceil(H / P), ceil(W / P)) patches:
    the picture counts as continued by zeros, and every feature belongs to pixels of the picture.
    """

    def __init__(self, config: XCiTConfig, num_classes: int = 0) -> None:
        super().__init__()
        check_heads(config.width, config.heads)
        self.config = config
        self.width = config.width
        self.patch_size = config.patch_size
        self.num_classes = num_classes
        projection = ConvolutionalPatches if config.patch_projection == "convolutional" else LinearPatches
        self.patches = projection(config.width, config.patch_size)
        self.positions = SinusoidalPositions(config.width)
        self.blocks = nn.ModuleList(
            XCiTBlock(
                config.width,
                config.heads,
                config.layer_scale,
                config.drop_path,
                config.cross_covariance,
                config.local_interaction,
                config.normalize,
                config.learned_temperature,
            )
            for _ in range(config.depth)
        )
        if config.class_depth:
            self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
            self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.class_blocks = nn.ModuleList(
            ClassAttentionBlock(config.width, config.heads, config.layer_scale, config.normalize_patches)
            for _ in range(config.class_depth)
        )
        self.head = nn.Linear(config.width, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear layers and the class token from a normal distribution of deviation 0.02, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.class_blocks:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, H, W] -> patch tokens with their positions, [B, h * w, d], and the grid (h, w)."""
        picture = self.patches(images)
        grid = (picture.shape[2], picture.shape[3])
        return (picture + self.positions(*grid)).flatten(2).mT, grid

    def gather(self, patches: Tensor) -> Tensor:
        """Patch tokens [B, N, d] leaving the last block -> class token [B, d] by class attention."""
        if not self.class_blocks:
            return patches.mean(dim=1)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        for block in self.class_blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """[B, 3, H, W] -> patch tokens leaving the last block, class token, grid, and the asked-for layers (0-based).

        The patch tokens are the local descriptors of Appendix A.2: taken before class attention, not normalised.
        """
        tokens, grid = self.embed(images)
        check_layers(layers, len(self.blocks))
        outputs = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, grid)
            if number in layers:
                outputs[number] = tokens
        return Features(tokens, self.gather(tokens), grid, tuple(outputs[number] for number in layers))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        return self.head(self.forward_features(images).class_token)

    def optimize_for_inference(self) -> "InferenceXCiT":
        """A copy that computes the same in less time and memory, for inference alone (see `xcit_inference`)."""
        from vitrail.backbones.xcit_inference import optimize_for_inference

        return optimize_for_inference(self)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, besides vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith(("class_token", "temperature"))}

    @property
    def layer_count(self) -> int:
        """Layers for layer-wise learning-rate decay: the patches, the blocks, the class blocks, the head."""
        return len(self.blocks) + len(self.class_blocks) + 2

    def layer_of(self, name: str) -> int:
        """The layer, 0 .. layer_count - 1, that the parameter `name` belongs to."""
        room, _, rest = name.partition(".")
        if room == "blocks":
            return 1 + int(rest.split(".")[0])
        if room == "class_blocks":
            return 1 + len(self.blocks) + int(rest.split(".")[0])
        return self.layer_count - 1 if room in ("norm", "head") else 0


# Width, heads, blocks, initial layer scale, patch normalisation: Table 3.2 and the official models.
_SIZES = {
    "nano_12": (128, 4, 12, 1.0, False),
    "tiny_12": (192, 4, 12, 1.0, True),
    "tiny_24": (192, 4, 24, 1e-5, True),
    "small_12": (384, 8, 12, 1.0, True),
    "small_24": (384, 8, 24, 1e-5, True),
    "medium_24": (512, 8, 24, 1e-5, True),
    "large_24": (768, 16, 24, 1e-5, True),
}

XCITS: dict[str, XCiTConfig] = {
    f"xcit_{size}_p{patch_size}": XCiTConfig(
        width=width,
        heads=heads,
        depth=depth,
        patch_size=patch_size,
        layer_scale=layer_scale,
        normalize_patches=normalize_patches,
    )
    for size, (width, heads, depth, layer_scale, normalize_patches) in _SIZES.items()
    for patch_size in (16, 8)
}
