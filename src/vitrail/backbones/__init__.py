"""Backbones: image -> Features, and every named variant."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from vitrail.backbones.features import Features
from vitrail.backbones.resnet import RESNETS, ResNetConfig
from vitrail.backbones.vit import VITS, ViTConfig
from vitrail.backbones.xcit import XCITS, XCiTConfig

BackboneConfig = XCiTConfig | ViTConfig | ResNetConfig

MODELS: dict[str, BackboneConfig] = {**XCITS, **VITS, **RESNETS}


class Backbone(Protocol):
    """What every backbone, a network built by its configuration, answers."""

    width: int
    """Channels of its features, d."""
    patch_size: int
    """Pixels a side of the square that a patch token stands for, P: the grid is (ceil(H / P), ceil(W / P))."""
    num_classes: int
    """Outputs of the head; 0: the output is the class token."""

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """[B, 3, H, W], normalised -> features, and those of intermediate layers by number, 0-based."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes], or class tokens [B, d]."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, besides vectors."""
        ...

    @property
    def layer_count(self) -> int:
        """Layers for layer-wise learning-rate decay."""
        ...

    def layer_of(self, name: str) -> int:
        """The layer, 0 .. layer_count - 1, that the parameter `name` belongs to."""
        ...
