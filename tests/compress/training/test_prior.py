"""Training of the masked image model on a frozen autoencoder."""

from dataclasses import replace

import pytest
import torch

from vitrail.compress.training.autoencoder import Masking, open_codec_task
from vitrail.compress.training.prior import PriorTraining
from vitrail.data.samples import UnlabelledImage
from vitrail.engine.curves import read_curves
from vitrail.engine.loop import fit
from vitrail.errors import VitrailError


@pytest.fixture
def experiment(common, tiny_prior, tiny_optimizer, autoencoder_run) -> PriorTraining:
    return PriorTraining(
        **common,
        prior=tiny_prior,
        optimizer=replace(tiny_optimizer, lr=1e-2),
        weights=str(autoencoder_run),
        masking=Masking("quincunx", stages=3),
    )


def test_the_autoencoder_stays_as_it_was_and_the_prior_learns(experiment, autoencoder_run, tmp_path):
    experiment = replace(experiment, loop=replace(experiment.loop, steps=25))
    fit(experiment, tmp_path / "run", initialize=lambda task: task.start_from(str(autoencoder_run)))
    made, source = open_codec_task(tmp_path / "run"), open_codec_task(autoencoder_run)
    for name, value in source.autoencoder.state_dict().items():
        assert torch.equal(made.autoencoder.state_dict()[name], value), name
    bits = [value for _, value in read_curves(tmp_path / "run")["train/prior_bits"]]
    assert sum(bits[-5:]) / 5 < 0.9 * bits[0]
    assert not made.prior.marginal.eq(1 / 16).any()


def test_the_autoencoder_never_leaves_evaluation_mode(experiment):
    task = experiment.prepared().build_task()
    assert task.prior.training and not any(module.training for module in task.autoencoder.modules())
    task.train()
    assert task.prior.training and not task.autoencoder.training
    before = {name: value.clone() for name, value in task.autoencoder.state_dict().items()}
    task(UnlabelledImage(torch.rand(2, 3, 32, 32)), "train")["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in task.autoencoder.state_dict().items())
    assert all(parameter.grad is None for parameter in task.autoencoder.parameters())


def test_a_resumed_training_ends_with_the_same_bits(experiment, autoencoder_run, resumed, tmp_path):
    whole, halves = resumed(experiment, tmp_path, initialize=lambda task: task.start_from(str(autoencoder_run)))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_without_an_autoencoder_there_is_nothing_to_train_on(experiment):
    with pytest.raises(VitrailError, match="needs a finished autoencoder; name its checkpoint"):
        replace(experiment, weights=None).prepared()
