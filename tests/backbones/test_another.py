"""A backbone that is in no other file of the library does all that the others do (docs/architecture.md)."""

import sys
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from torch import nn

from vitrail import backbones
from vitrail.backbones.features import Backbone, Features
from vitrail.recipes import load_recipe, train
from vitrail.weights import create_model, export, load_weights, networks, open_network

MODULE = "vitrail.backbones.another"


@dataclass(frozen=True)
class AnotherConfig:
    width: int = 8

    def build(self, num_classes=0):
        return Another(self, num_classes)


class Another(Backbone):
    def __init__(self, config, num_classes):
        super().__init__()
        self.config, self.width, self.patch_size, self.num_classes = config, config.width, 16, num_classes
        self.patches = nn.Conv2d(3, config.width, 16, 16)
        self.head = nn.Linear(config.width, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images, layers=()):
        maps = self.patches(images)
        return Features(maps.flatten(2).mT, maps.mean((2, 3)), tuple(maps.shape[2:]))

    def forward(self, images):
        return self.head(self.forward_features(images).class_token)

    def no_weight_decay(self):
        return set()

    @property
    def layer_count(self):
        return 2

    def layer_of(self, name):
        return int(name.startswith("head."))


@pytest.fixture
def known(monkeypatch):
    """As if it stood in a file of its own, and in the union of configurations."""
    module = ModuleType(MODULE)
    module.AnotherConfig = AnotherConfig
    monkeypatch.setitem(sys.modules, MODULE, module)
    for one in (AnotherConfig, Another):
        monkeypatch.setattr(one, "__module__", MODULE)
    monkeypatch.setitem(backbones.MODELS, "another", AnotherConfig())
    monkeypatch.setattr(networks, "BackboneConfig", networks.BackboneConfig | AnotherConfig)


def test_a_run_opens_lends_its_weights_and_is_exported(known, tmp_path):
    demo = load_recipe("xcit_demo")
    sizes = {"train_transform": replace(demo.train_transform, size=32), "loader": replace(demo.loader, workers=0)}
    loop = replace(demo.loop, steps=1, batch_size=2, monitor=None)
    experiment = replace(demo, backbone=AnotherConfig(), validation=None, loop=loop, **sizes)
    train(experiment, tmp_path / "run")
    network = open_network(tmp_path / "run")
    assert isinstance(network.model, Another) and len(network.classes) == 10
    export(network, tmp_path / "another.safetensors")
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 48).view(2, 3, 32, 48)
    expected = network.model(images)
    assert torch.equal(open_network(tmp_path / "another.safetensors").model(images), expected)
    assert torch.equal(create_model("another", tmp_path / "run")(images), expected)
    assert load_weights(AnotherConfig().build(3), tmp_path / "run", "auto").fresh == ("head.bias", "head.weight")
