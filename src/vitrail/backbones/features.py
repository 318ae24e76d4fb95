"""What every backbone answers, whatever is inside."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

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
