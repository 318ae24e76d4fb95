import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vitrail.engine.optim import OptimizerConfig, build_optimizer, learning_rate, set_schedules, weight_decay
from vitrail.errors import VitrailError

CONFIG = OptimizerConfig(lr=5e-4, lr_batch_size=512, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5)
RUN = {"steps": 100, "steps_per_epoch": 5.0, "batch_size": 1024}


class Layered(nn.Module):
    """Patches, two blocks, a head; one of its matrices is a token."""

    layer_count = 4

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.patches = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def no_weight_decay(self):
        return {"token"}

    def layer_of(self, name):
        first, _, rest = name.partition(".")
        return {"blocks": lambda: 1 + int(rest[0]), "head": lambda: 3}.get(first, lambda: 0)()


def groups_by_name(optimizer, module):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        # the peak is 5e-4 * 1024 / 512, the warm-up lasts 10 steps
        ("cosine", 0, 1e-6),
        ("cosine", 4, 1e-6 + (1e-3 - 1e-6) * 0.4),
        ("cosine", 10, 1e-3),
        ("cosine", 55, (1e-3 + 1e-5) / 2),
        ("cosine", 40, 1e-5 + (1e-3 - 1e-5) * 0.75),  # a third of the way: (1 + cos 60 degrees) / 2
        ("linear", 10, 1e-3),
        ("linear", 40, 1e-3 + (1e-5 - 1e-3) / 3),
        ("linear", 99, 1e-3 + (1e-5 - 1e-3) * 89 / 90),
        ("constant", 9, 1e-6 + (1e-3 - 1e-6) * 0.9),
        ("constant", 99, 1e-3),
    ],
)
def test_learning_rate_closed_form(schedule, step, expected):
    assert learning_rate(replace(CONFIG, schedule=schedule), step, **RUN) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_as_stated_and_in_fractions_of_an_epoch():
    config = replace(CONFIG, lr_batch_size=None, warmup_epochs=0.5)
    rate = learning_rate(config, 1, steps=10, steps_per_epoch=5.0, batch_size=1024)
    assert rate == pytest.approx(1e-6 + (5e-4 - 1e-6) / 2.5, rel=1e-12)


def test_learning_rate_of_a_tiny_batch_never_exceeds_its_peak():
    rates = [learning_rate(CONFIG, step, steps=100, steps_per_epoch=5.0, batch_size=4) for step in range(100)]
    assert max(rates) == 5e-4 * 4 / 512 == rates[10]
    assert rates[-1] == rates[10]  # below min_lr there is nothing to come down to


def test_warm_up_longer_than_the_run():
    rates = [learning_rate(CONFIG, step, steps=4, steps_per_epoch=5.0, batch_size=512) for step in range(4)]
    assert rates == pytest.approx([1e-6 + (5e-4 - 1e-6) * step / 4 for step in range(4)], rel=1e-12)


def test_weight_decay_schedule():
    config = replace(CONFIG, weight_decay=0.04, weight_decay_end=0.4)
    assert [weight_decay(config, step, steps=100) for step in (0, 50)] == pytest.approx([0.04, 0.22], rel=1e-12)
    assert weight_decay(config, 99, steps=100) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi * 0.99)) / 2)
    assert weight_decay(CONFIG, 99, steps=100) == 0.05


def test_groups_of_layers_and_of_weight_decay():
    module = nn.ModuleDict({"backbone": Layered(), "decoder": nn.Linear(2, 2)})
    module["backbone"].blocks[1].weight.requires_grad_(False)
    config = replace(CONFIG, layer_decay=0.5, weight_decay_end=0.1)
    optimizer = build_optimizer(config, module)
    rate = set_schedules(optimizer, config, 10, **RUN)
    decay = weight_decay(config, 10, steps=100)
    found = {
        name: (group["lr"] / rate, group["weight_decay"]) for name, group in groups_by_name(optimizer, module).items()
    }
    assert rate == pytest.approx(1e-3)
    assert found == {
        "backbone.token": (0.125, 0.0),
        "backbone.patches.weight": (0.125, decay),
        "backbone.patches.bias": (0.125, 0.0),
        "backbone.blocks.0.weight": (0.25, decay),
        "backbone.blocks.0.bias": (0.25, 0.0),
        "backbone.blocks.1.bias": (0.5, 0.0),
        "backbone.head.weight": (1.0, decay),
        "backbone.head.bias": (1.0, 0.0),
        "decoder.weight": (1.0, decay),
        "decoder.bias": (1.0, 0.0),
    }


def test_optimizers_are_those_of_the_configuration():
    module = nn.Linear(2, 2)
    adamw = build_optimizer(replace(CONFIG, betas=(0.8, 0.95)), module)
    sgd = build_optimizer(replace(CONFIG, name="sgd", momentum=0.5), module)
    assert type(adamw) is torch.optim.AdamW
    assert adamw.defaults["betas"] == (0.8, 0.95)
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.5, True)


def test_nothing_to_train_and_nothing_to_decay_by():
    with pytest.raises(VitrailError, match="Nothing in Linear is left to train"):
        build_optimizer(CONFIG, nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(VitrailError, match="Linear has no layers to decay the learning rate by"):
        build_optimizer(replace(CONFIG, layer_decay=0.9), nn.Linear(2, 2))
