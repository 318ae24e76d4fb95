"""Encoding and embedding with senses made up for the test."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from vitrail.bind.encoder import patch_encoder, signal_encoder
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBindConfig, LogitScale
from vitrail.errors import VitrailError

SIZES = {"width": 8, "depth": 1, "heads": 2}


@dataclass(frozen=True, kw_only=True)
class Touch(Modality):
    """A sense whose files are numbers: n clips of n samples more than 8."""

    name: ClassVar[str] = "touch"

    def build(self, dimension):
        return signal_encoder(self, dimension, channels=2, kernel_size=4, length=8)

    def read(self, source):
        count = int(source)
        return torch.randn(count, 2, 8 + count // 3, generator=torch.Generator().manual_seed(count))


@dataclass(frozen=True, kw_only=True)
class Smell(Modality):
    name: ClassVar[str] = "smell"

    def build(self, dimension):
        return patch_encoder(self, dimension, channels=1, kernel_size=4, stride=4, size=(8, 8))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ImageBindConfig(5, {"touch": Touch(**SIZES, temperature=0.05), "smell": Smell(**SIZES, temperature=None)})
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def unit(tensor):
    return tensor / tensor.norm(dim=-1, keepdim=True)


def test_encode(model):
    touch, smell = torch.randn(3, 2, 8), torch.randn(3, 1, 8, 8)
    embeddings = model.encode({"touch": touch, "smell": smell})
    assert list(embeddings) == ["touch", "smell"]
    torch.testing.assert_close(embeddings["touch"], unit(model.encoders["touch"](touch)))
    torch.testing.assert_close(embeddings["smell"], unit(model.encoders["smell"](smell)))
    scaled = model.encode({"touch": touch, "smell": smell}, scaled=True)
    torch.testing.assert_close(scaled["touch"], 20 * embeddings["touch"])
    torch.testing.assert_close(scaled["smell"], embeddings["smell"])


def test_clips_are_averaged_after_normalizing(model):
    clips = torch.randn(3, 4, 2, 8)
    each = torch.stack([unit(model.encoders["touch"](one)) for one in clips])
    average = each.mean(dim=1)
    torch.testing.assert_close(model.encode({"touch": clips})["touch"], unit(average))
    torch.testing.assert_close(model.encode({"touch": clips}, scaled=True)["touch"], 20 * average)


def test_gradients_flow(model):
    model.encode({"touch": torch.randn(2, 2, 8)}, scaled=True)["touch"].sum().backward()
    assert model.encoders["touch"].stem.patches.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_embed_is_encode_of_each_file(model, batch_size):
    sources = ["1", "4", "2", "3", "1"]  # clips of two lengths
    vectors = model.embed({"touch": sources}, batch_size)["touch"]
    expected = [model.encode({"touch": Touch(**SIZES).read(source)[None]})["touch"][0] for source in sources]
    torch.testing.assert_close(vectors, torch.stack(expected))
    assert not vectors.requires_grad
    assert model.embed({"touch": []})["touch"].shape == (0, 5)


def test_what_does_not_fit_is_said(model):
    with pytest.raises(VitrailError, match=r"no modality 'taste' but touch, smell; choose among these\.$"):
        model.encode({"taste": torch.zeros(1, 2, 8)})
    with pytest.raises(VitrailError, match="no modality 'taste'"):
        model.embed({"taste": ["a"]})
    with pytest.raises(VitrailError, match=r"Inputs of shape \[2, 3, 8\] do not fit"):
        model.encode({"touch": torch.zeros(2, 3, 8)})


def test_temperature_is_fixed_or_learned_and_never_too_low():
    fixed, learned = LogitScale(0.2, False), LogitScale(0.07, True)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    assert list(fixed.parameters()) == []
    assert list(fixed.state_dict()) == ["log_scale"]
    torch.testing.assert_close(learned(torch.ones(2)), torch.full((2,), 1 / 0.07))
    with torch.no_grad():
        learned.log_scale.fill_(math.log(1000))
    torch.testing.assert_close(learned(torch.ones(2)), torch.full((2,), 100.0))


def test_configuration_is_checked():
    with pytest.raises(VitrailError, match="at least one modality; choose among "):
        ImageBindConfig(5, {})
    with pytest.raises(VitrailError, match=r"stands in the model as 'image'; name each modality as its class does\.$"):
        ImageBindConfig(5, {"image": Touch(**SIZES)})
    with pytest.raises(VitrailError, match="dimension is 0"):
        ImageBindConfig(0, {"touch": Touch(**SIZES)})
