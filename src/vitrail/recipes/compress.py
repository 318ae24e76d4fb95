"""PQ-MIM: the autoencoder, the masked image model, the perceptual stage (Section 5.4.1)."""

from dataclasses import replace
from pathlib import Path

from vitrail.compress.autoencoder import AUTOENCODERS, AutoencoderConfig
from vitrail.compress.crops import Crops
from vitrail.compress.perceptual_training import PerceptualTraining
from vitrail.compress.prior import PriorConfig
from vitrail.compress.prior_training import PriorTraining
from vitrail.compress.training import AutoencoderTraining, Masking
from vitrail.data.datasets import ImageData
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.errors import VitrailError

_OPTIMIZER = OptimizerConfig(
    lr=1e-3, lr_batch_size=256, weight_decay=0.02, betas=(0.9, 0.95), warmup_epochs=5, min_lr=5e-5
)
_LOOP = Loop(epochs=50, batch_size=256)


def _autoencoder(model: str) -> AutoencoderConfig:
    if model not in AUTOENCODERS:
        raise VitrailError(f"There is no autoencoder {model}; choose one of {', '.join(AUTOENCODERS)}.")
    return AUTOENCODERS[model]


def compress_mse(model: str = "l6") -> AutoencoderTraining:
    """PQ-MIM on ImageNet by MSE, autoencoder and masked image model at once (Figure 5.5).

    The thesis's rates are `--autoencoder.factor` 16 and 8 with `--autoencoder.parts` 2, 4 and 6.

    Command: torchrun --nproc-per-node 8 -m vitrail train compress_mse --data.root imagenet/train
    --validation kodak --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports curves (Figure 5.5) and 0.373 bpp for one of its models (Table 5.2).
    """
    return AutoencoderTraining(
        data=ImageData(Path("imagenet/train")),
        autoencoder=_autoencoder(model),
        prior=PriorConfig(),
        objective="mse",
        quantizer_weight=0.5,
        optimizer=_OPTIMIZER,
        loop=_LOOP,
    )


def compress_ms_ssim(model: str = "l6") -> AutoencoderTraining:
    """The same by MS-SSIM (Figure 5.5).

    Command: torchrun --nproc-per-node 8 -m vitrail train compress_ms_ssim --data.root imagenet/train
    --validation kodak --loop.devices 8
    Cost and score: not measured by us.
    """
    return replace(compress_mse(model), objective="ms_ssim", quantizer_weight=10.0)


def compress_nested(model: str = "l6") -> AutoencoderTraining:
    """One model for the rates of all numbers of sub-vectors, by dropping the last ones in training; ours.

    Command: torchrun --nproc-per-node 8 -m vitrail train compress_nested --data.root imagenet/train
    --validation kodak --loop.devices 8
    Cost and score: not measured by us.
    """
    recipe = compress_mse(model)
    return replace(recipe, autoencoder=replace(recipe.autoencoder, parts=6, nested=True))


def compress_prior() -> PriorTraining:
    """The masked image model alone, on a finished autoencoder.

    Command: torchrun --nproc-per-node 8 -m vitrail train compress_prior --weights runs/compress_mse
    --data.root imagenet/train --validation kodak --loop.devices 8
    Cost and score: not measured by us.
    """
    return PriorTraining(
        data=ImageData(Path("imagenet/train")),
        weights="runs/compress_mse",
        masking=Masking("quincunx"),
        optimizer=_OPTIMIZER,
        loop=_LOOP,
    )


def compress_perceptual() -> PerceptualTraining:
    """The perceptual stage: MSE, LPIPS and a ProjectedGAN discriminator, the encoder frozen (Figure 5.6, Table 5.1).

    LPIPS is that of VGG-16; its weights come from the hub, or from files: `--features.network timm:vgg16=FILE` and
    `--features.linear FILE`.

    Command: torchrun --nproc-per-node 8 -m vitrail train compress_perceptual --weights runs/compress_mse
    --data.root imagenet/train --validation kodak --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports FID 3.69, KID 6.6e-4 and MS-SSIM 14.1 dB (Table 5.1).
    """
    return PerceptualTraining(data=ImageData(Path("imagenet/train")), weights="runs/compress_mse", loop=_LOOP)


def compress_mini() -> AutoencoderTraining:
    """A small nested codec and its masked image model, trained on the bundled photos within minutes on two cores.

    Command: vitrail train compress_mini
    Cost and score: docs/results.md.
    """
    photos = Path(__file__).parents[1] / "demo" / "photos"
    return AutoencoderTraining(
        data=ImageData(photos / "train"),
        validation=photos / "test",
        crops=Crops(size=64, resized=False),
        autoencoder=AutoencoderConfig(
            width=64, depth=2, heads=4, factor=8, parts=4, centroids=64, nested=True, usage_decay=0.95
        ),
        prior=PriorConfig(width=64, depth=2, heads=4),
        masking=Masking(stages=4),
        optimizer=OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.02, betas=(0.9, 0.95), warmup_epochs=1),
        loop=Loop(epochs=20, batch_size=16, log_every=10, evaluate_every=10),
    )
