"""The perceptual stage: the decoder and its adversary take turns, all else is frozen."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vitrail.compress.perceptual import FeaturesConfig, load_features, perceptual_distance
from vitrail.compress.training.autoencoder import open_codec_task
from vitrail.compress.training.losses import discriminator_loss, generator_loss
from vitrail.compress.training.perceptual import PerceptualTraining
from vitrail.data.samples import UnlabelledImage
from vitrail.engine.curves import read_curves
from vitrail.engine.loop import fit
from vitrail.errors import VitrailError


@pytest.fixture
def experiment(common, tiny_optimizer, autoencoder_run, run) -> PerceptualTraining:
    optimizer = replace(tiny_optimizer, clip=4.0)
    return PerceptualTraining(
        **common,
        weights=str(autoencoder_run),
        features=FeaturesConfig(network=str(run)),
        discriminator_width=8,
        optimizer=optimizer,
        discriminator_optimizer=optimizer,
    )


def build(experiment):
    torch.manual_seed(0)
    task = experiment.prepared().build_task()
    task.start_from(experiment.weights)
    task.phases()
    return task


@pytest.fixture
def batch() -> UnlabelledImage:
    return UnlabelledImage(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("discriminator", ["projected", "stylegan", "unet", "none"])
def test_the_losses_are_equation_5_6(experiment, batch, run, discriminator):
    experiment = replace(experiment, discriminator=discriminator, perceptual_weight=2.0, adversarial_weight=0.3)
    task = build(experiment).eval()
    assert list(task.phases()) == ["generator"] + (["discriminator"] if discriminator != "none" else [])
    features = load_features(str(run))
    torch.manual_seed(2)
    with torch.no_grad():
        terms = task(batch, "generator")
        torch.manual_seed(2)
        kept = task.draw_kept(4, batch.image.device)
        made = task.autoencoder.reconstruct(task.autoencoder.encode(batch.image), kept)
        maps, others = features(batch.image), features(made)
        expected = F.mse_loss(made, batch.image) + 2 * perceptual_distance(maps, others).mean()
        if discriminator != "none":
            expected += 0.3 * generator_loss(task.discriminator(made, others))
            torch.manual_seed(2)
            loss = task(batch, "discriminator")["loss"]
            wanted = discriminator_loss(task.discriminator(batch.image, maps), task.discriminator(made, others))
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_the_decoder_and_the_discriminator_learn(experiment, batch):
    task = build(experiment)
    phases = task.phases()
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    for phase, prefix in (("generator", "autoencoder.decoder."), ("discriminator", "discriminator.")):
        trained = {names[id(p)] for group in phases[phase].optimizer.param_groups for p in group["params"]}
        assert trained and all(name.startswith(prefix) for name in trained)
    task(batch, "discriminator")["loss"].backward()
    assert all(parameter.grad is None for parameter in task.autoencoder.parameters())
    assert not task.autoencoder.encoder.training and task.autoencoder.decoder.training


def test_files_stay_what_they_were(experiment, autoencoder_run, tmp_path):
    """Encoder and codebook, and so all indices, are those of the autoencoder that the stage started from."""
    fit(experiment, tmp_path / "run", initialize=lambda task: task.start_from(str(autoencoder_run)))
    made, source = open_codec_task(tmp_path / "run").autoencoder, open_codec_task(autoencoder_run).autoencoder
    before, after = source.state_dict(), made.state_dict()
    for name in before:
        if not name.startswith("decoder."):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["decoder.expand.weight"], after["decoder.expand.weight"])
    curves = read_curves(tmp_path / "run")
    assert {"train/generator/lpips", "train/generator/adversarial", "train/discriminator/real"} <= set(curves)


@pytest.mark.parametrize("discriminator", ["projected", "stylegan", "unet"])
def test_a_resumed_training_ends_with_the_same_bits(experiment, autoencoder_run, resumed, tmp_path, discriminator):
    experiment = replace(experiment, discriminator=discriminator)
    whole, halves = resumed(experiment, tmp_path, initialize=lambda task: task.start_from(str(autoencoder_run)))
    assert any(name.startswith("optimizer.discriminator") for name in whole)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_the_features_are_no_part_of_a_checkpoint(experiment):
    task = experiment.prepared().build_task()
    before = list(task.state_dict())
    task.phases()
    assert list(task.state_dict()) == before and task._features


def test_a_checkpoint_opens_without_features_and_weights(experiment, autoencoder_run, tmp_path):
    """What was read from them is in the configuration."""
    prepared = experiment.prepared()
    assert prepared.features.channels == (32, 32) and prepared.autoencoder is not None
    elsewhere = replace(prepared, weights="gone", features=replace(prepared.features, network="gone"))
    assert elsewhere.prepared() == elsewhere
    assert sum(p.numel() for p in elsewhere.build_task().parameters()) > 0
    no_features = replace(experiment, discriminator="unet", perceptual_weight=0.0, features=FeaturesConfig("gone"))
    assert build(no_features)._features == ()


@pytest.mark.parametrize(
    ("field", "value"), [("perceptual_weight", -1), ("adversarial_weight", -1), ("discriminator_width", 0)]
)
def test_weights_and_widths_that_are_none_are_refused(experiment, field, value):
    with pytest.raises(
        VitrailError, match=rf"^PerceptualTraining.{field} is {value}; it must be at least {value + 1}.$"
    ):
        replace(experiment, **{field: value})


def test_a_discriminator_that_there_is_not_is_refused(experiment):
    wanted = "none, projected, stylegan, unet"
    with pytest.raises(VitrailError, match=rf"^PerceptualTraining.discriminator is gan; it must be one of {wanted}.$"):
        replace(experiment, discriminator="gan")
