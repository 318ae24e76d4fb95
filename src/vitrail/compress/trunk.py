"""What encoder, decoder and masked image model have in common (Section 5.3.1, Neural network)."""

from typing import cast

from torch import Tensor, nn

from vitrail.backbones.features import check_heads
from vitrail.backbones.xcit_inference import InferenceBlock
from vitrail.layers.blocks import NORM_EPSILON, XCiTBlock
from vitrail.layers.positions import SinusoidalPositions


class Trunk(nn.Module):
    """Sinusoidal positions, XCiT blocks and a LayerNorm; linear in the number of tokens, for grids of any size.

    Args:
        width: d.
        depth: blocks.
        heads: of cross-covariance attention.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, width: int, depth: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        check_heads(width, heads)
        self.positions = SinusoidalPositions(width)
        self.blocks = nn.ModuleList(XCiTBlock(width, heads, drop_path=drop_path) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, picture: Tensor) -> Tensor:
        """[B, d, h, w] -> [B, h, w, d]."""
        grid = (picture.shape[2], picture.shape[3])
        tokens = (picture + self.positions(*grid)).flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens, grid)
        return self.norm(tokens).unflatten(1, grid)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, besides vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith("temperature")}


class InferenceTrunk(nn.Module):
    """A trunk that changes its tokens in place, a few at a time where that saves memory; made under no_grad.

    It computes what the trunk does in evaluation, to rounding.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.positions, self.norm = trunk.positions, trunk.norm
        self.blocks = nn.ModuleList(InferenceBlock(cast(XCiTBlock, block), None) for block in trunk.blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, h, w, d], contiguous, to be overwritten -> [B, h, w, d]."""
        grid = (tokens.shape[1], tokens.shape[2])
        flat = self.positions.add_to(tokens).view(len(tokens), -1, tokens.shape[3])
        for block in self.blocks:
            flat = block(flat, grid)
        return self.norm(flat).view_as(tokens)
