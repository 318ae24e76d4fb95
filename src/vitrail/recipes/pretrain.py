"""Pre-training without labels: SplitMask, BEiT, DINO (Sections 3.5.1 and 4.5)."""

from dataclasses import replace
from pathlib import Path

from vitrail.backbones import MODELS, BackboneConfig
from vitrail.backbones.vit import ViTConfig
from vitrail.data.augmentation import EvalTransform
from vitrail.data.datasets import ImageData
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.errors import VitrailError
from vitrail.pretrain.beit import BEiT
from vitrail.pretrain.dino import DINO, Crops
from vitrail.pretrain.masks import Masks
from vitrail.pretrain.splitmask import SplitMask
from vitrail.pretrain.tokenizers import TokenizerConfig
from vitrail.pretrain.views import STRONG, View

# Bao et al., 2021, whom Section 4.5.6 follows.
_OPTIMIZER = OptimizerConfig(
    lr=1.5e-3, lr_batch_size=2048, weight_decay=0.05, betas=(0.9, 0.999), warmup_epochs=10, min_lr=1e-5, clip=3.0
)


def _network(model: str) -> BackboneConfig:
    if model not in MODELS:
        raise VitrailError(f"There is no model {model}; `vitrail models` lists them.")
    return MODELS[model]


def _vit(model: str) -> ViTConfig:
    config = _network(model)
    if not isinstance(config, ViTConfig):
        raise VitrailError(
            f"{model} is no ViT, and masked patches can be left out of a ViT alone; choose a vit_ model."
        )
    return replace(config, pooling="mean", layer_scale=0.1, drop_path=0.1)


def _splitmask(model: str, folder: str, epochs: float, batch_size: int = 2048) -> SplitMask:
    return SplitMask(
        data=ImageData(Path(folder)),
        backbone=_vit(model),
        optimizer=_OPTIMIZER,
        loop=Loop(epochs=epochs, batch_size=batch_size, precision="bf16-mixed"),
    )


def _strong(experiment: SplitMask) -> SplitMask:
    return replace(experiment, view=STRONG, masks=Masks("uniform", ratio=0.75))


def splitmask_imagenet(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on ImageNet, 300 epochs (Tables 4.3 and 4.7).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_imagenet --data.root imagenet/train --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 81.5 % top-1 after fine-tuning a ViT-S, 83.6 % a ViT-B (Table 4.7).
    """
    return _splitmask(model, "imagenet/train", 300)


def splitmask_inaturalist_2018(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on the training images of iNaturalist 2018, 800 epochs (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_inaturalist_2018 --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 70.1 % for a ViT-S, 74.6 % for a ViT-B (Table 4.6).
    """
    return _splitmask(model, "inaturalist_2018/train", 800)


def splitmask_inaturalist_2019(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on the training images of iNaturalist 2019, 1400 epochs (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_inaturalist_2019 --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 76.3 % for a ViT-S, 80.4 % for a ViT-B (Table 4.6).
    """
    return _splitmask(model, "inaturalist_2019/train", 1400)


def splitmask_food101(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on the training images of Food101, 5000 epochs (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_food101 --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 91.5 % for a ViT-S, 91.2 % for a ViT-B (Table 4.6).
    """
    return _splitmask(model, "food101/train", 5000)


def splitmask_cars(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on the training images of Stanford Cars, 5000 epochs, strong augmentation, 75 % hidden (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_cars --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 92.8 % for a ViT-S, 93.1 % for a ViT-B (Table 4.6).
    """
    return _strong(_splitmask(model, "cars/train", 5000))


def splitmask_clipart(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on DomainNet's clipart, 5000 epochs, strong augmentation, 75 % hidden (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_clipart --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 78.3 % for a ViT-S, 79.3 % for a ViT-B (Table 4.6).
    """
    return _strong(_splitmask(model, "domainnet/clipart/train", 5000))


def splitmask_painting(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on DomainNet's painting, 5000 epochs, strong augmentation, 75 % hidden (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_painting --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 69.2 % for a ViT-S, 72.0 % for a ViT-B (Table 4.6).
    """
    return _strong(_splitmask(model, "domainnet/painting/train", 5000))


def splitmask_sketch(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on DomainNet's sketch, 5000 epochs, strong augmentation, 75 % hidden (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_sketch --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 70.7 % for a ViT-S, 72.1 % for a ViT-B (Table 4.6).
    """
    return _strong(_splitmask(model, "domainnet/sketch/train", 5000))


def splitmask_ade20k(model: str = "vit_base_patch16_224") -> SplitMask:
    """SplitMask on the training images of ADE20k, 21,000 epochs, crops of 25 % at most (Table 4.3, Section 4.5.2.2).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_ade20k --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 45.7 mIoU with UperNet (Table 4.5).
    """
    return replace(_splitmask(model, "ade20k/images/training", 21_000), view=View(scale=(0.08, 0.25)))


def splitmask_coco(model: str = "vit_small_patch16_224") -> SplitMask:
    """SplitMask on the training images of COCO, 3000 epochs (Table 4.3).

    Command: torchrun --nproc-per-node 8 -m vitrail train splitmask_coco --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 45.3 box AP with Mask R-CNN for a ViT-S, 46.8 for a ViT-B (Table 4.4).
    """
    return _splitmask(model, "coco/train2017", 3000)


def beit_imagenet(model: str = "vit_small_patch16_224") -> BEiT:
    """BEiT on ImageNet, 300 epochs (Table 4.7); other data sets by `--data.root`, Table 4.3's `--loop.epochs`.

    Command: torchrun --nproc-per-node 8 -m vitrail train beit_imagenet --data.root imagenet/train --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 81.3 % top-1 after fine-tuning a ViT-S, 82.8 % a ViT-B (Table 4.7).
    """
    return BEiT(
        data=ImageData(Path("imagenet/train")),
        backbone=_vit(model),
        optimizer=_OPTIMIZER,
        loop=Loop(epochs=300, batch_size=2048, precision="bf16-mixed"),
    )


def dino_imagenet(model: str = "vit_small_patch16_224") -> DINO:
    """DINO on ImageNet, 300 epochs, of a ViT or an XCiT (Sections 3.5.1 and 4.5).

    Command: torchrun --nproc-per-node 8 -m vitrail train dino_imagenet --data.root imagenet/train --loop.devices 8
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 81.5 % top-1 after fine-tuning a ViT-S (Table 4.7).
    """
    return DINO(
        data=ImageData(Path("imagenet/train")),
        backbone=_network(model),
        optimizer=OptimizerConfig(
            lr=5e-4, lr_batch_size=256, weight_decay=0.04, weight_decay_end=0.4, warmup_epochs=10, min_lr=1e-6, clip=3.0
        ),
        loop=Loop(epochs=300, batch_size=1024, precision="bf16-mixed"),
    )


# The miniatures: pictures of 64 pixels in 8 x 8 patches, a ViT of 6 blocks, which two cores train in minutes.
_SMALL = ViTConfig(width=192, depth=6, heads=3, patch_size=8, image_size=64, pooling="mean", drop_path=0.1)
_SMALL_OPTIMIZER = OptimizerConfig(
    lr=1e-3, lr_batch_size=None, weight_decay=0.05, warmup_epochs=5, min_lr=1e-5, clip=3.0
)
_SMALL_LOOP = Loop(epochs=100, batch_size=64, precision="bf16-mixed", evaluate_every=10)
_SMALL_WORDS = TokenizerConfig(words=1024)
_PHOTOS = Path(__file__).parents[1] / "demo" / "photos"


def splitmask_mini() -> SplitMask:
    """SplitMask in miniature, on the bundled photos of groceries; any folder by `--data.root`.

    Command: vitrail train splitmask_mini
    Cost and score: docs/results.md.
    """
    return SplitMask(
        data=ImageData(_PHOTOS / "train"),
        validation=_PHOTOS / "test",
        backbone=_SMALL,
        view=View(size=64, scale=(0.2, 1.0)),
        eval_transform=EvalTransform(size=64),
        masks=Masks(least=4, most=20),
        tokenizer=_SMALL_WORDS,
        optimizer=_SMALL_OPTIMIZER,
        loop=_SMALL_LOOP,
    )


def beit_mini() -> BEiT:
    """BEiT in miniature, on the bundled photos of groceries; any folder by `--data.root`.

    Command: vitrail train beit_mini
    Cost and score: docs/results.md.
    """
    return BEiT(
        data=ImageData(_PHOTOS / "train"),
        validation=_PHOTOS / "test",
        backbone=_SMALL,
        view=View(size=64, scale=(0.2, 1.0)),
        eval_transform=EvalTransform(size=64),
        masks=Masks(ratio=0.4, least=4, most=20),
        tokenizer=_SMALL_WORDS,
        optimizer=_SMALL_OPTIMIZER,
        loop=_SMALL_LOOP,
    )


def dino_mini() -> DINO:
    """DINO in miniature, on the bundled photos of groceries; any folder by `--data.root`.

    Command: vitrail train dino_mini
    Cost and score: docs/results.md.
    """
    large, small = (0.4, 1.0), (0.1, 0.4)
    crops = Crops()
    return DINO(
        data=ImageData(_PHOTOS / "train"),
        validation=_PHOTOS / "test",
        backbone=_SMALL,
        crops=Crops(
            first=replace(crops.first, size=64, scale=large),
            second=replace(crops.second, size=64, scale=large),
            small=replace(crops.small, size=32, scale=small),
            count=4,
        ),
        eval_transform=EvalTransform(size=64),
        outputs=1024,
        hidden=512,
        bottleneck=128,
        teacher_temperature=(0.04, 0.04),  # warmer, a teacher of few pictures comes to say the same of all
        optimizer=replace(_SMALL_OPTIMIZER, lr=5e-4, weight_decay=0.04, weight_decay_end=0.4),
        loop=_SMALL_LOOP,
    )
