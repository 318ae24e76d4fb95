"""Binding senses by pairs (Chapter 6)."""

from pathlib import Path
from typing import Any

from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.model import ImageBindConfig
from vitrail.bind.training import BindTraining, Pairs
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig

_SMALL: dict[str, Any] = {"width": 64, "depth": 3, "heads": 4}
_SMALL_OPTIMIZER = OptimizerConfig(
    lr=3e-3, lr_batch_size=None, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=0.2, min_lr=0.0, clip=1.0
)


def bind_digits() -> BindTraining:
    """Pictures of digits with their names, and with their sounds; sounds and names never meet. In miniature.

    Command: python benchmarks/bind_pairs.py digits --data DATA --output digits; vitrail train bind_digits
    Cost and score: docs/results.md.
    """
    folder = Path("digits")
    senses = {
        "image": Image(
            **_SMALL, size=28, patch_size=7, scale=(0.6, 1.0), flip=0.0, colour_jitter=0.0, temperature=None
        ),
        "text": Text(width=64, depth=1, heads=4, length=8, temperature=0.1, learned_temperature=False),
        "audio": Audio(**_SMALL, temperature=0.1, clips=1, padding="repeat"),
    }
    return BindTraining(
        model=ImageBindConfig(64, senses),
        pairs=(
            Pairs(folder / "train_image_text.csv", "image", "text", share=2),
            Pairs(folder / "train_image_audio.csv", "image", "audio", aligned=False, update_first=False),
        ),
        validation=Pairs(folder / "test_audio_text.csv", "audio", "text"),
        frozen=(),
        optimizer=_SMALL_OPTIMIZER,
        loop=Loop(epochs=2, batch_size=64, precision="bf16-mixed", log_every=20, evaluate_every=2),
    )


def bind_actions() -> BindTraining:
    """Depth maps of people at exercise with its name, and with their motion; motion and names never meet. In miniature.

    Command: python benchmarks/bind_pairs.py actions --data DATA --output actions; vitrail train bind_actions
    Cost and score: docs/results.md.
    """
    folder = Path("actions")
    senses = {
        "depth": Depth(**_SMALL, size=96, scale=(0.5, 1.0), flip=0.0, temperature=None),
        "text": Text(width=64, depth=1, heads=4, length=12, temperature=0.1, learned_temperature=False),
        "imu": Inertial(
            **_SMALL, drop_path=0.1, dropout=0.1, acceleration="g", rotation="deg/s", windows="centre", temperature=0.1
        ),
    }
    return BindTraining(
        model=ImageBindConfig(64, senses),
        pairs=(
            Pairs(folder / "train.csv", "depth", "text"),
            Pairs(folder / "train.csv", "depth", "imu", aligned=False, update_first=False),
        ),
        validation=Pairs(folder / "test.csv", "imu", "text"),
        frozen=(),
        optimizer=_SMALL_OPTIMIZER,
        loop=Loop(epochs=40, batch_size=64, precision="bf16-mixed", log_every=20, evaluate_every=40),
    )
