"""Equation 6.1 term by term in float64, with temperatures of senses."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import normalize

from vitrail.bind.encoder import signal_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBindConfig
from vitrail.bind.training.contrastive import pair_loss, temperature_of
from vitrail.errors import VitrailError


@dataclass(frozen=True, kw_only=True)
class Sight(Modality):
    name: ClassVar[str] = "sight"
    width: int = 8
    depth: int = 1
    heads: int = 2

    def build(self, dimension):
        return signal_encoder(self, dimension, channels=1, kernel_size=4, length=8)


@dataclass(frozen=True, kw_only=True)
class Touch(Sight):
    name: ClassVar[str] = "touch"


def make(sight=None, touch=0.05, learned=False):
    torch.manual_seed(0)
    touch = Touch(temperature=touch, learned_temperature=learned)
    return ImageBindConfig(5, {"sight": Sight(temperature=sight), "touch": touch}).build().eval()


def equation(images, others, temperature):
    """L_{I,M} + L_{M,I}, each the mean over the batch."""
    total = 0.0
    for queries, keys in ((images.double(), others.double()), (others.double(), images.double())):
        for i in range(len(queries)):
            terms = [torch.exp(queries[i] @ keys[j] / temperature) for j in range(len(keys))]
            total -= float(torch.log(terms[i] / (terms[i] + sum(terms[:i] + terms[i + 1 :])))) / len(queries)
    return total


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_loss_is_the_equation(temperature, learned):
    model = make(touch=temperature, learned=learned)
    images, others = (normalize(torch.randn(6, 5), dim=1) for _ in range(2))
    loss = pair_loss(model, {"sight": images, "touch": others}, "sight", "touch")
    assert loss.item() == pytest.approx(equation(images, others, temperature), rel=1e-5)


def test_temperature_is_the_seconds_or_the_firsts():
    model = make(sight=0.1, touch=0.2)
    assert temperature_of(model, "sight", "touch").item() == pytest.approx(0.2)
    assert temperature_of(model, "touch", "sight").item() == pytest.approx(0.1)
    assert temperature_of(make(touch=0.2), "touch", "sight").item() == pytest.approx(0.2)
    with pytest.raises(VitrailError, match="Neither sight nor touch has a temperature"):
        temperature_of(make(touch=None), "sight", "touch")


def test_learned_temperature_gets_a_gradient_and_a_limit():
    model = make(touch=0.2, learned=True)
    log_scale = model.scales["touch"].log_scale
    embeddings = {name: normalize(torch.randn(4, 5), dim=1) for name in ("sight", "touch")}
    pair_loss(model, embeddings, "sight", "touch").backward()
    pair, step = tuple(embeddings.values()), 1e-5
    # d L / d log(1 / tau), by differences
    expected = (equation(*pair, 0.2 / (1 + step)) - equation(*pair, 0.2 * (1 + step))) / (2 * step)
    assert float(log_scale.grad) == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        log_scale.fill_(9.0)
    assert temperature_of(model, "sight", "touch").item() == pytest.approx(0.01)
    assert not temperature_of(make(touch=0.2), "sight", "touch").requires_grad


def test_a_detached_sense_learns_nothing():
    model = make()
    embeddings = model.encode({"sight": torch.randn(3, 1, 8), "touch": torch.randn(3, 1, 8)})
    pair_loss(model, embeddings | {"sight": embeddings["sight"].detach()}, "sight", "touch").backward()
    assert all(parameter.grad is None for parameter in model.encoders["sight"].parameters())
    assert all(parameter.grad is not None for parameter in model.encoders["touch"].parameters())
