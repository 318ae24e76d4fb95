"""What every backbone answers, whatever is inside."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from vitrail.errors import VitrailError


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    Attributes:
        patches: [B, N, d], one token a patch, row by row.
        class_token: [B, d], the whole image; the mean of the patches where a backbone has no class token.
        grid: (h, w), the patches' rows and columns; N = h * w unless only a subset of the patches was asked for.
        layers: [B, N, d] each, the patch tokens leaving the layers that were asked for by number (0-based), in the
            order asked for, before any final normalisation.
        layer_grids: (h, w) of each of `layers`; empty where all have the grid of `patches`, as in all backbones but
            those that make the picture smaller on the way (ResNet), whose layers differ in N and d as well.
    """

    patches: Tensor
    class_token: Tensor
    grid: tuple[int, int]
    layers: tuple[Tensor, ...] = ()
    layer_grids: tuple[tuple[int, int], ...] = ()

    def maps(self) -> tuple[Tensor, ...]:
        """The asked-for layers as pictures, [B, d, h, w] each; the patches when no layer was asked for."""
        layers = self.layers or (self.patches,)
        grids = self.layer_grids or (self.grid,) * len(layers)
        return tuple(tokens.mT.unflatten(2, grid) for tokens, grid in zip(layers, grids, strict=True))


class Backbone(nn.Module):
    """A network that its configuration, `config`, builds: images [B, 3, H, W] -> logits [B, num_classes].

    The module of its first weights is called `patches`, by which `weights.convert` finds a backbone in a file.
    """

    config: Any
    """What built it, one of `vitrail.backbones.BackboneConfig`."""
    width: int
    """Channels of its features, d."""
    patch_size: int
    """Pixels a side of the square that a patch token stands for, P: the grid is (ceil(H / P), ceil(W / P))."""
    num_classes: int
    """Outputs of the head; 0: the output is the class token."""

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """[B, 3, H, W], normalised -> features, and those of intermediate layers by number, 0-based."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, besides vectors."""
        raise NotImplementedError

    @property
    def layer_count(self) -> int:
        """Layers for layer-wise learning-rate decay."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """The layer, 0 .. layer_count - 1, that the parameter `name` belongs to."""
        raise NotImplementedError


def check_layers(layers: Sequence[int], count: int) -> None:
    """Raises VitrailError when one of the asked-for `layers` is not among a backbone's 0 .. `count` - 1."""
    if missing := [number for number in layers if not 0 <= number < count]:
        raise VitrailError(
            f"The backbone has layers 0 to {count - 1}, but {', '.join(map(str, missing))} was asked for; "
            "choose among those it has."
        )


def check_heads(width: int, heads: int) -> None:
    """Raises VitrailError when `width` channels cannot be shared out among `heads`."""
    if width % heads:
        raise VitrailError(
            f"{width} channels cannot be shared out among {heads} heads; make width a multiple of heads."
        )
