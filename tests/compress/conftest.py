"""Tiny networks of the codec, and trainings of a few steps on the bundled photos."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitrail.compress import Codec
from vitrail.compress.autoencoder import AutoencoderConfig
from vitrail.compress.prior import PriorConfig
from vitrail.compress.training.autoencoder import AutoencoderTraining
from vitrail.compress.training.crops import Crops
from vitrail.data.datasets import ImageData
from vitrail.data.loader import LoaderConfig
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig

TINY = AutoencoderConfig(width=16, depth=1, heads=2, factor=8, parts=3, centroids=16, part_width=4, usage_decay=0.8)


@pytest.fixture(scope="session")
def tiny_autoencoder() -> AutoencoderConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_prior() -> PriorConfig:
    return PriorConfig(width=16, depth=1, heads=2)


@pytest.fixture(scope="session")
def common(photos: Path) -> dict:
    """Fields of every tiny training."""
    return {
        "data": ImageData(photos / "test"),
        "crops": Crops(size=32, resized=False),
        "loop": Loop(steps=4, batch_size=8, accelerator="cpu", log_every=1),
        "loader": LoaderConfig(workers=0),
    }


@pytest.fixture(scope="session")
def tiny_optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.0, warmup_epochs=0)


@pytest.fixture(scope="session")
def tiny_training(
    common: dict, tiny_prior: PriorConfig, tiny_optimizer: OptimizerConfig
) -> Callable[..., AutoencoderTraining]:
    def build(**fields) -> AutoencoderTraining:
        plain = {"autoencoder": TINY, "prior": tiny_prior, "optimizer": tiny_optimizer}
        return AutoencoderTraining(**(common | plain | fields))

    return build


@pytest.fixture(scope="session")
def autoencoder_run(tiny_training, tmp_path_factory) -> Path:
    """The folder of a finished training of a nested autoencoder alone."""
    from vitrail.engine.loop import fit

    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    fit(tiny_training(prior=None, autoencoder=replace(TINY, nested=True)), folder)
    return folder


@pytest.fixture(scope="session")
def resumed() -> Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Trains in one go, and again in two halves from the checkpoint between: all tensors of both ends."""
    from vitrail.engine.checkpoint import load
    from vitrail.engine.loop import fit

    def tensors(folder: Path) -> dict[str, Tensor]:
        checkpoint = load(folder / "checkpoints" / "last.safetensors")
        return {f"{p}.{n}": t for p in ("model", "optimizer") for n, t in checkpoint.tensors(p).items()}

    def run(experiment, folder: Path, initialize=None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        half = experiment.loop.steps // 2
        kept = replace(experiment, loop=replace(experiment.loop, keep_every=half))
        fit(kept, folder / "whole", initialize=initialize)
        checkpoints = folder / "halves" / "checkpoints"
        checkpoints.mkdir(parents=True)
        between = folder / "whole" / "checkpoints" / f"step_{half:08}.safetensors"
        (checkpoints / "last.safetensors").write_bytes(between.read_bytes())
        torch.manual_seed(12345)
        fit(kept, folder / "halves", resume=True)
        return tensors(folder / "whole"), tensors(folder / "halves")

    return run


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., Codec]:
    """(parts, centroids, factor) -> a codec of stand-ins with random weights, the same every time."""
    spec = importlib.util.spec_from_file_location("vitrail.toy_codec", Path(__file__).parent / "toy_codec.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_codec
