"""The codec's recipes have the thesis's values, and the small one runs from the command line."""

from dataclasses import replace

import pytest

from vitrail.engine.optim import OptimizerConfig
from vitrail.errors import VitrailError
from vitrail.recipes import load_recipe


@pytest.mark.parametrize("name", ["compress_mse", "compress_ms_ssim", "compress_nested", "compress_prior"])
def test_the_values_of_section_5_4_1(name):
    recipe = load_recipe(name)
    assert (recipe.loop.epochs, recipe.loop.batch_size, recipe.crops.size, recipe.crops.resized) == (50, 256, 256, True)
    assert recipe.optimizer == OptimizerConfig(
        lr=1e-3, lr_batch_size=256, weight_decay=0.02, betas=(0.9, 0.95), warmup_epochs=5, min_lr=5e-5
    )
    assert (recipe.prior.width, recipe.prior.depth, recipe.masking.stages) == (768, 12, 5)


def test_the_two_distortions_have_their_weights():
    mse, ms_ssim = load_recipe("compress_mse"), load_recipe("compress_ms_ssim")
    assert (mse.objective, mse.quantizer_weight) == ("mse", 0.5)
    assert (ms_ssim.objective, ms_ssim.quantizer_weight) == ("ms_ssim", 10.0)
    assert replace(ms_ssim, objective="mse", quantizer_weight=0.5) == mse
    config = mse.autoencoder
    assert (config.width, config.depth, config.part_width, config.centroids) == (768, 6, 8, 256)
    assert load_recipe("compress_mse", "t6").autoencoder.width == 192


def test_the_perceptual_stage():
    recipe = load_recipe("compress_perceptual")
    assert (recipe.perceptual_weight, recipe.adversarial_weight, recipe.discriminator) == (1.0, 0.1, "projected")
    for config in (recipe.optimizer, recipe.discriminator_optimizer):
        assert (config.lr, config.weight_decay, config.clip) == (1e-4, 5e-5, 4.0)
    assert recipe.loop.epochs == 50


def test_an_unknown_autoencoder_is_named():
    with pytest.raises(VitrailError, match="There is no autoencoder x9; choose one of t6, s6, m6, l6"):
        load_recipe("compress_mse", "x9")


def test_the_small_one_runs_from_the_command_line(tmp_path, capsys):
    from vitrail.cli.main import main
    from vitrail.compress.training.autoencoder import open_codec_task

    small = ["--crops.size", "32", "--loop.batch-size", "4", "--loop.steps", "1", "--loader.workers", "0"]
    fewer = ["--autoencoder.width", "16", "--prior.width", "16", "--validation", "None", "--loop.accelerator", "cpu"]
    assert main(["train", "compress_mini", "-o", str(tmp_path / "run"), *small, *fewer]) == 0
    task = open_codec_task(tmp_path / "run")
    assert task.prior is not None and task.qualities == (1, 2, 3, 4)
