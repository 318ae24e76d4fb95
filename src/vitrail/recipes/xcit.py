"""Classification with XCiT, and its peers under the same recipe (Section 3.5.1)."""

from dataclasses import replace
from pathlib import Path

from vitrail.backbones import MODELS, BackboneConfig
from vitrail.backbones.xcit import XCiTConfig
from vitrail.data.augmentation import EvalTransform, Mixing, TrainTransform
from vitrail.data.datasets import ImageData
from vitrail.data.loader import LoaderConfig
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.errors import VitrailError
from vitrail.recognize.classify import Classification

# Stochastic depth grows with the size of the model (Section 3.5.1, the official training commands).
_DROP_PATH = {"small_12": 0.05, "small_24": 0.1, "medium_24": 0.15, "large_24": 0.25}


def _backbone(model: str) -> BackboneConfig:
    if model not in MODELS:
        raise VitrailError(f"There is no model {model}; `vitrail models` lists them.")
    config = MODELS[model]
    rate = next((rate for size, rate in _DROP_PATH.items() if size in model), 0.0)
    return replace(config, drop_path=rate) if isinstance(config, XCiTConfig) else config


def xcit_imagenet(model: str = "xcit_small_12_p16") -> Classification:
    """XCiT, DeiT or ResNet-50 on ImageNet from scratch, 400 epochs (Tables 3.2 and 3.5).

    Command: torchrun --nproc-per-node 8 -m vitrail train xcit_imagenet --data.root imagenet/train
    --validation imagenet/val --loop.devices 8 --loop.precision bf16-mixed
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 82.0 % top-1 for XCiT-S12/16 (Table 3.2).
    """
    return Classification(
        data=ImageData(Path("imagenet/train")),
        validation=Path("imagenet/val"),
        backbone=_backbone(model),
        optimizer=OptimizerConfig(lr=5e-4, lr_batch_size=512, weight_decay=0.05, warmup_epochs=5, min_lr=1e-5),
        loop=Loop(epochs=400, batch_size=1024, ema=0.99996, monitor="top1"),
        loader=LoaderConfig(repeats=3),
    )


def xcit_imagenet_distilled(model: str = "xcit_small_12_p16") -> Classification:
    """The same with hard distillation from RegNetY-16GF (Table 3.5, marked with the alembic).

    Command: torchrun --nproc-per-node 8 -m vitrail train xcit_imagenet_distilled --data.root imagenet/train
    --validation imagenet/val --loop.devices 8 --loop.precision bf16-mixed
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 83.3 % top-1 for XCiT-S12/16.
    """
    return replace(xcit_imagenet(model), teacher="timm:regnety_160.deit_in1k")


def xcit_imagenet_384(model: str = "xcit_small_12_p16") -> Classification:
    """Fine-tuning of a model trained at 224 pixels at 384 (Table 3.5, marked with the arrow).

    The thesis gives no hyper-parameters for this step; these are DeiT's: 30 epochs at a constant 5e-6, no decay.

    Command: torchrun --nproc-per-node 8 -m vitrail train xcit_imagenet_384 --weights runs/xcit_imagenet_distilled
    --data.root imagenet/train --validation imagenet/val --loop.devices 8 --loop.precision bf16-mixed
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 84.7 % top-1 for XCiT-S12/16.
    """
    return replace(
        xcit_imagenet_distilled(model),
        weights="runs/xcit_imagenet_distilled",
        train_transform=TrainTransform(size=384),
        eval_transform=EvalTransform(size=384),
        optimizer=OptimizerConfig(lr=5e-6, weight_decay=1e-8, warmup_epochs=0, schedule="constant"),
        loop=Loop(epochs=30, batch_size=512, monitor="top1"),
    )


def xcit_transfer(model: str = "xcit_small_12_p16") -> Classification:
    """Fine-tuning of published or own weights on other classes (Table 3.6).

    The thesis gives no hyper-parameters for this step; these are ours: a tenth of the learning rate, lower in the
    early layers.

    Command: vitrail train xcit_transfer --weights xcit_small_12_p16.dist_224 --data.root photos/train
    --validation photos/val
    Cost and score: depend on the data; not measured by us, for the published weights could not be had.
    """
    return Classification(
        data=ImageData(Path("photos/train")),
        validation=Path("photos/val"),
        backbone=_backbone(model),
        weights=f"{model}.dist_224",
        optimizer=OptimizerConfig(lr=5e-5, lr_batch_size=64, layer_decay=0.75, warmup_epochs=2, min_lr=1e-6),
        loop=Loop(epochs=30, batch_size=64, monitor="top1"),
    )


def xcit_folder(model: str = "xcit_tiny_12_p8") -> Classification:
    """XCiT from scratch on a folder of your own, one folder a class: for hundreds to some ten thousand images.

    Milder augmentation than ImageNet's, for such sets are learned in thousands of steps, not in hundreds of thousands.

    Command: vitrail train xcit_folder --data.root photos/train --validation photos/val
    Cost and score: depend on the data; see `xcit_grocery` for a measured run.
    """
    return Classification(
        data=ImageData(Path("photos/train")),
        validation=Path("photos/val"),
        backbone=_backbone(model),
        optimizer=OptimizerConfig(lr=1e-3, lr_batch_size=64, warmup_epochs=5, clip=1.0),
        train_transform=TrainTransform(size=128, scale=(0.25, 1.0), rand_augment="", colour_jitter=0.3, erasing=0.0),
        eval_transform=EvalTransform(size=128),
        mixing=Mixing(mixup=0.0, cutmix=0.0),
        loop=Loop(epochs=100, batch_size=64, log_every=10, evaluate_every=5, monitor="top1"),
    )


def xcit_demo() -> Classification:
    """A small XCiT on the bundled photos of ten kinds of groceries: what `vitrail demo recognize` trains.

    Command: vitrail demo recognize
    Cost and score: see the README.
    """
    photos = Path(__file__).parents[1] / "demo" / "photos"
    return replace(
        xcit_folder(),
        data=ImageData(photos / "train"),
        validation=photos / "test",
        backbone=XCiTConfig(width=96, depth=6, heads=4, patch_size=8, drop_path=0.05),
        train_transform=TrainTransform(size=80, scale=(0.35, 1.0), rand_augment="", colour_jitter=0.3, erasing=0.0),
        eval_transform=EvalTransform(size=80),
        optimizer=OptimizerConfig(lr=1e-3, lr_batch_size=None, warmup_epochs=2, clip=1.0),
        loop=Loop(epochs=30, batch_size=32, log_every=5, evaluate_every=5),
    )


def xcit_grocery(model: str = "xcit_nano_12_p16") -> Classification:
    """XCiT from scratch on the 43 coarse classes of the Grocery Store Dataset, in the folder `grocery`.

    Command: vitrail train xcit_grocery, then vitrail evaluate runs/xcit_grocery --data grocery/test.txt
    --label-column 2
    Cost and score: docs/results.md.
    """
    grocery = Path("grocery")
    return replace(
        xcit_folder(model),
        data=ImageData(
            grocery, list=grocery / "train.txt", label_column=2, classes=grocery / "classes.csv", class_column=2
        ),
        validation=grocery / "val.txt",
        loop=Loop(epochs=20, batch_size=64, log_every=10, evaluate_every=5, monitor="top1"),
    )


def xcit_ablation() -> Classification:
    """Table 3.8 in miniature on the same data: 64 pixels, 6 layers, 12 epochs; the switches are fields of the backbone.

    Command: python benchmarks/xcit_ablations.py --data grocery --output ablations
    Cost and score: docs/results.md.
    """
    return replace(
        xcit_grocery(),
        backbone=XCiTConfig(width=96, depth=6, heads=4, patch_size=8),
        train_transform=TrainTransform(size=64, scale=(0.25, 1.0), rand_augment="", colour_jitter=0.3, erasing=0.0),
        eval_transform=EvalTransform(size=64),
        optimizer=OptimizerConfig(lr=1e-3, lr_batch_size=None, warmup_epochs=1, clip=1.0),
        loop=Loop(epochs=12, batch_size=32, log_every=20, evaluate_every=4),
    )
