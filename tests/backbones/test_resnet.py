"""ResNet against torchvision on the same weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from vitrail.backbones.resnet import RESNETS, ResNet, ResNetConfig

IMAGES = torch.randn(2, 3, 64, 90, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def pair(build: Callable[..., nn.Module]) -> tuple[ResNet, nn.Module]:
    """Ours and torchvision's with the same weights."""
    model = build(ResNetConfig(18), 5)
    theirs = get_model("resnet18", num_classes=5)
    state = {name.removeprefix("network."): tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict({name.replace("head.", "fc."): tensor for name, tensor in state.items()})
    return model, theirs.eval()


def test_same_logits_as_torchvision(pair: tuple[ResNet, nn.Module]) -> None:
    model, theirs = pair
    torch.testing.assert_close(model(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-4)


def test_features_are_the_stages(pair: tuple[ResNet, nn.Module]) -> None:
    model, theirs = pair
    names = ["layer1", "layer2", "layer3", "layer4"]
    expected = create_feature_extractor(theirs, names)(IMAGES)
    features = model.forward_features(IMAGES, layers=(0, 1, 2, 3))
    assert features.layer_grids == ((16, 23), (8, 12), (4, 6), (2, 3))
    assert features.grid == (2, 3)
    for picture, name in zip(features.maps(), names, strict=True):
        torch.testing.assert_close(picture, expected[name])
    torch.testing.assert_close(features.class_token, expected["layer4"].mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet101", 44_549_160)]
)
def test_published_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in RESNETS[name].build(1000).parameters()) == count
