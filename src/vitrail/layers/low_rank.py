"""LoRA: training a large network by small changes of its matrices (Hu et al., 2022)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Linear):
    """A linear layer whose own weight is frozen, and to which a product of two thin matrices is added.

    It has the parameters of the layer that it takes the place of, under their names, and `down` and `up` besides. At
    first `up` is zero and the layer does what the other one did.

    Args:
        linear: the layer; its parameters are taken over, and frozen.
        rank: r, of the change.
        scale: of the change; alpha / r in the paper.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float = 1.0) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        self.scale = scale
        self.down = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return super().forward(input) + self.scale * F.linear(F.linear(input, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that does the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.scale * self.up @ self.down)
        plain.bias = self.bias if self.bias is None else nn.Parameter(self.bias.clone())
        return plain


def add_low_rank(module: nn.Module, rank: int, scale: float = 1.0) -> None:
    """Freezes `module`, in place, but for low-rank changes of all linear layers in it."""
    module.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, LowRankLinear(child, rank, scale))


def load_beneath(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the state of the plain module that `module` is, or was before `add_low_rank`; the changes stay.

    Raises:
        RuntimeError: as `load_state_dict`.
    """
    own = module.state_dict()
    changes = {
        f"{name}.{key}"
        for name, layer in module.named_modules()
        if isinstance(layer, LowRankLinear)
        for key in ("down", "up")
    }
    module.load_state_dict({**{key: own[key] for key in changes}, **state})


def merge_low_rank(module: nn.Module) -> None:
    """Puts plain linear layers that do the same in the place of all low-rank ones, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LowRankLinear):
                setattr(parent, name, child.merged())
