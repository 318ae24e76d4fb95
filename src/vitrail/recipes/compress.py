"""PQ-MIM: the autoencoder, the masked image model, the perceptual stage (Section 5.4.1)."""

from dataclasses import replace
from pathlib import Path

from vitrail.compress.autoencoder import AUTOENCODERS, AutoencoderConfig
from vitrail.compress.prior import PriorConfig
from vitrail.compress.training.autoencoder import AutoencoderTraining, Masking
from vitrail.compress.training.crops import Crops
from vitrail.compress.training.perceptual import PerceptualTraining
from vitrail.compress.training.prior import PriorTraining
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


def compress_photos() -> AutoencoderTraining:
    """The autoencoder of the codec that ships: nested, M = 1 to 8 at f = 16, small enough to train on two cores.

    The quantizer's loss weighs 0.005 rather than the thesis's 0.5: against a mean square error of values in 0..1 the
    latter pulls the sub-vectors together until they lie in two or three of their eight dimensions.

    Command: vitrail train compress_photos --data.root photos --data.list photos/train.txt --validation photos/held_out
    --loop.devices 2
    Cost and score: the model's card, src/vitrail/compress/shipped/photos_2.md.
    """
    return AutoencoderTraining(
        data=ImageData(Path("photos")),
        crops=Crops(size=128, scale=(0.08, 0.5)),
        autoencoder=AutoencoderConfig(width=256, depth=4, heads=8, factor=16, parts=8, nested=True, shortcut=True),
        quantizer_weight=0.005,
        optimizer=OptimizerConfig(
            lr=1.5e-3, lr_batch_size=None, weight_decay=0.02, betas=(0.9, 0.95), warmup_epochs=1, min_lr=2e-5, clip=1.0
        ),
        loop=Loop(steps=6000, batch_size=32, precision="bf16-mixed", evaluate_every=4),
    )


def compress_photos_prior() -> PriorTraining:
    """The masked image model of the codec that ships, on the autoencoder of `compress_photos`.

    Command: vitrail train compress_photos_prior --weights runs/compress_photos --data.root photos
    --data.list photos/train.txt --validation photos/held_out --loop.devices 2
    Cost and score: the model's card, src/vitrail/compress/shipped/photos_2.md.
    """
    return PriorTraining(
        data=ImageData(Path("photos")),
        crops=Crops(size=192, scale=(0.2, 1.0)),
        weights="runs/compress_photos",
        prior=PriorConfig(width=192, depth=6, heads=4),
        masking=Masking("quincunx"),
        optimizer=OptimizerConfig(
            lr=2e-3, lr_batch_size=None, weight_decay=0.02, betas=(0.9, 0.95), warmup_epochs=0.5, min_lr=2e-5, clip=1.0
        ),
        loop=Loop(steps=2500, batch_size=16, precision="bf16-mixed", ema=0.99, evaluate_every=2),
    )


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
            width=64, depth=2, heads=4, factor=8, parts=4, centroids=64, nested=True, usage_decay=0.95, shortcut=True
        ),
        quantizer_weight=0.005,
        prior=PriorConfig(width=64, depth=2, heads=4),
        masking=Masking(stages=4),
        optimizer=OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.02, betas=(0.9, 0.95), warmup_epochs=1),
        loop=Loop(epochs=20, batch_size=16, log_every=10, evaluate_every=10),
    )
