"""Backbones: image -> Features, and every named variant."""

from vitrail.backbones.resnet import RESNETS, ResNetConfig
from vitrail.backbones.vit import VITS, ViTConfig
from vitrail.backbones.xcit import XCITS, XCiTConfig

BackboneConfig = XCiTConfig | ViTConfig | ResNetConfig

MODELS: dict[str, BackboneConfig] = {**XCITS, **VITS, **RESNETS}
