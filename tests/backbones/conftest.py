"""Small backbones of every kind."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitrail.backbones import BackboneConfig
from vitrail.backbones.resnet import ResNetConfig
from vitrail.backbones.vit import ViTConfig
from vitrail.backbones.xcit import XCiTConfig

TINY: dict[str, BackboneConfig] = {
    "xcit": XCiTConfig(width=32, depth=3, heads=2),
    "xcit_p8_tokens_not_normalised": XCiTConfig(width=32, depth=3, heads=2, patch_size=8, normalize_patches=False),
    "xcit_dense": XCiTConfig(width=32, depth=3, heads=2, class_depth=0),
    "xcit_linear": XCiTConfig(width=32, depth=3, heads=2, patch_size=10, patch_projection="linear"),
    "vit": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32),
    "vit_layer_scale": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32, layer_scale=0.1),
    "vit_mean": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32, pooling="mean"),
    "vit_no_class_token": ViTConfig(
        width=32, depth=3, heads=2, patch_size=8, image_size=32, pooling="mean", class_token=False
    ),
    "vit_sinusoidal": ViTConfig(width=32, depth=3, heads=2, patch_size=8, positions="sinusoidal"),
    "deit_distilled": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32, distillation_token=True),
    "vit_sra_average": ViTConfig(
        width=32, depth=3, heads=2, patch_size=8, image_size=32, attention="spatial_reduction_average"
    ),
    "vit_sra_convolutional": ViTConfig(
        width=32, depth=3, heads=2, patch_size=8, image_size=32, attention="spatial_reduction_convolutional"
    ),
    "vit_linformer": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32, attention="linformer"),
    "vit_efficient": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32, attention="efficient"),
    "vit_axial": ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32, attention="axial"),
    "resnet": ResNetConfig(18),
}


@pytest.fixture(params=TINY)
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    """The configuration of each of the small backbones."""
    return TINY[request.param]


@pytest.fixture
def tiny() -> dict[str, BackboneConfig]:
    """All of them by name."""
    return TINY


@pytest.fixture
def build() -> Callable[[BackboneConfig, int], nn.Module]:
    """Builds a backbone whose every parameter and running mean differs from its first value, evaluating."""

    def build(config: BackboneConfig, num_classes: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        model = config.build(num_classes)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                spread = 0.05 + 0.1 * torch.rand(tensor.shape, generator=generator)
                sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                if name.endswith("running_var"):
                    tensor.copy_(1 + spread)
                else:
                    tensor.add_(sign * spread)
        return model.eval()

    return build
