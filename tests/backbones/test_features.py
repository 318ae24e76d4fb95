"""All backbones answer the same questions."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitrail.backbones import MODELS, BackboneConfig
from vitrail.backbones.features import Features
from vitrail.backbones.resnet import ResNetConfig
from vitrail.backbones.vit import ViTConfig
from vitrail.config import from_json, to_json
from vitrail.errors import VitrailError

Build = Callable[..., nn.Module]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def is_distilled(config: BackboneConfig) -> bool:
    return isinstance(config, ViTConfig) and config.distillation_token


def test_features_of_any_backbone(config: BackboneConfig, build: Build) -> None:
    model = build(config)
    features = model.forward_features(IMAGES, layers=(2, 0))
    side = math.ceil(32 / model.patch_size)
    assert features.grid == (side, side)
    assert features.patches.shape == (2, side * side, model.width)
    assert features.class_token.shape == (2, model.width)
    if not is_distilled(config):  # whose output is the mean of two tokens
        torch.testing.assert_close(model(IMAGES), features.class_token)
    assert len(features.layers) == 2
    for picture, tokens in zip(features.maps(), features.layers, strict=True):
        assert picture.flatten(2).shape == tokens.mT.shape
        assert torch.equal(picture.flatten(2), tokens.mT)
    only = model.forward_features(IMAGES, layers=(0,))
    assert torch.equal(only.layers[0], features.layers[1])
    plain = model.forward_features(IMAGES)
    assert plain.layers == ()
    assert torch.equal(plain.patches, features.patches)
    assert torch.equal(plain.maps()[0].flatten(2).mT, plain.patches)


def test_any_height_and_width(config: BackboneConfig, build: Build) -> None:
    model = build(config)
    images = torch.randn(1, 3, 37, 70)
    if isinstance(config, ViTConfig) and config.attention == "linformer":
        with pytest.raises(VitrailError, match="built for 16 patches and cannot take 45"):
            model.forward_features(images)
        return
    features = model.forward_features(images, layers=(2,))
    grid = (math.ceil(37 / model.patch_size), math.ceil(70 / model.patch_size))
    assert features.grid == grid
    assert features.patches.shape[1] == grid[0] * grid[1]
    assert features.patches.isfinite().all()


def test_logits_are_the_head_on_the_class_token(config: BackboneConfig, build: Build) -> None:
    model = build(config, 5)
    assert model.num_classes == 5
    logits = model(IMAGES)
    assert logits.shape == (2, 5)
    if not is_distilled(config):
        torch.testing.assert_close(logits, model.head(model.forward_features(IMAGES).class_token))


def test_an_image_is_the_same_in_any_batch(config: BackboneConfig, build: Build) -> None:
    model, images = build(config, 5).double(), IMAGES.double()
    torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-10, atol=1e-10)


def test_every_parameter_takes_gradients_from_the_logits(config: BackboneConfig, build: Build) -> None:
    model = build(config, 5).train()
    (model(IMAGES) * torch.randn(2, 5)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_layers_are_numbered_from_the_picture_to_the_head(config: BackboneConfig) -> None:
    model = config.build(5)
    numbers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert set(numbers.values()) == set(range(model.layer_count))
    assert numbers["head.weight"] == model.layer_count - 1
    assert numbers[next(name for name in numbers if name.startswith(("patches", "network.conv1")))] == 0
    blocks = {int(name.split(".")[1]): number for name, number in numbers.items() if name.startswith("blocks.")}
    assert blocks == {number: number + 1 for number in blocks}


def test_what_weight_decay_leaves_alone_exists(config: BackboneConfig) -> None:
    model = config.build(5)
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    assert {name for name in names if name.endswith(("_token", "temperature", "table"))} <= model.no_weight_decay()


def test_a_layer_that_does_not_exist_is_named(config: BackboneConfig) -> None:
    model = config.build()
    count = 4 if isinstance(config, ResNetConfig) else 3
    with pytest.raises(VitrailError, match=f"layers 0 to {count - 1}, but 7, -1 was asked for"):
        model.forward_features(IMAGES, layers=(0, 7, -1))


def test_heads_that_do_not_share_out_the_width_are_refused() -> None:
    with pytest.raises(VitrailError, match="384 channels cannot be shared out among 7 heads"):
        ViTConfig(heads=7).build()


def test_maps_of_different_grids() -> None:
    layers = (torch.arange(8.0).view(1, 4, 2), torch.arange(3.0).view(1, 1, 3))
    features = Features(layers[1], layers[1][:, 0], (1, 1), layers, ((2, 2), (1, 1)))
    large, small = features.maps()
    assert large.shape == (1, 2, 2, 2)
    assert large[0, :, 1, 0].tolist() == [4.0, 5.0]
    assert small.shape == (1, 3, 1, 1)


@pytest.mark.parametrize("name", MODELS)
def test_configurations_survive_json(name: str) -> None:
    assert from_json(json.loads(json.dumps(to_json(MODELS[name])))) == MODELS[name]
