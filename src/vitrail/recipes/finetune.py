"""Fine-tuning of what was pre-trained without labels, as BEiT does it (Section 4.5.3)."""

from dataclasses import replace
from pathlib import Path

from vitrail.data.augmentation import EvalTransform, Mixing, TrainTransform
from vitrail.data.datasets import ImageData
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.recipes.pretrain import splitmask_imagenet, splitmask_mini
from vitrail.recognize.classify import Classification


def pretrain_finetune(model: str = "vit_small_patch16_224") -> Classification:
    """Fine-tuning of a pre-trained ViT for classification: layers learn at 0.65 of the rate of the one above.

    The supervised baseline takes the weights of a classifier instead (`--weights runs/...`), random initialisation
    takes none (`--weights None --optimizer.layer-decay None`).

    Command: torchrun --nproc-per-node 8 -m vitrail train pretrain_finetune --weights runs/splitmask_imagenet
    --data.root imagenet/train --validation imagenet/val --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 81.5 % top-1 for a ViT-S, 83.6 % for a ViT-B (Table 4.7).
    """
    return Classification(
        data=ImageData(Path("imagenet/train")),
        validation=Path("imagenet/val"),
        backbone=splitmask_imagenet(model).backbone,
        weights="runs/splitmask_imagenet",
        optimizer=OptimizerConfig(
            lr=4e-3, lr_batch_size=1024, weight_decay=0.05, layer_decay=0.65, warmup_epochs=20, min_lr=1e-6
        ),
        mixing=Mixing(mixup=0.8, cutmix=1.0),
        loop=Loop(epochs=100, batch_size=1024, precision="bf16-mixed", monitor="top1"),
    )


def pretrain_finetune_mini() -> Classification:
    """The same in miniature, of a run of `splitmask_mini`, `beit_mini` or `dino_mini`, on the bundled photos.

    Command: vitrail train splitmask_mini && vitrail train pretrain_finetune_mini --weights runs/splitmask_mini
    Cost and score: docs/results.md.
    """
    mini = splitmask_mini()
    return replace(
        pretrain_finetune(),
        data=mini.data,
        validation=mini.validation,
        backbone=mini.backbone,
        weights="runs/splitmask_mini",
        optimizer=OptimizerConfig(
            lr=1e-3, lr_batch_size=None, weight_decay=0.05, layer_decay=0.75, warmup_epochs=5, min_lr=1e-6, clip=3.0
        ),
        train_transform=TrainTransform(size=64, scale=(0.35, 1.0), rand_augment="", colour_jitter=0.3, erasing=0.0),
        eval_transform=EvalTransform(size=64),
        mixing=Mixing(mixup=0.0, cutmix=0.0),
        loop=Loop(epochs=50, batch_size=32, precision="bf16-mixed", evaluate_every=10, monitor="top1"),
    )
