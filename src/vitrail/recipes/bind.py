"""Binding senses by pairs (Chapter 6)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.backbones.vit import ViTConfig
from vitrail.bind.checkpoints.clip import NORM_EPSILON
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBindConfig
from vitrail.bind.training.binding import BindTraining, Pairs
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig

# OpenCLIP's ViT-H/14, trained on LAION-2B: the file that its authors publish under this name.
_CLIP = "open_clip_pytorch_model.bin"

# Of images beside depth and heat (Tables 6.5 and 6.6e): strong augmentation.
_STRONG: dict[str, Any] = {"rand_augment": "rand-m9-mstd0.5", "erasing": 0.25, "interpolation": "bilinear"}
# Of images beside motion: none, the central square.
_NONE: dict[str, Any] = {"scale": (1.0, 1.0), "flip": 0.0, "colour_jitter": 0.0}


def _huge(
    folder: str,
    image: dict[str, Any],
    bound: Modality,
    *,
    lr: float,
    weight_decay: float,
    clip: float,
    batch_size: int,
    replication: float,
    epochs: float,
) -> BindTraining:
    """A sense bound to the frozen images of OpenCLIP, whose frozen text stands by: a column of Table 6.5."""
    senses = {"image": Image(norm_epsilon=NORM_EPSILON, **image), "text": Text(norm_epsilon=NORM_EPSILON)}
    return BindTraining(
        model=ImageBindConfig(1024, {**senses, bound.name: bound}),
        pairs=(Pairs(Path(folder) / "train.csv", "image", bound.name, replication=replication),),
        frozen=("image", "text"),
        weights=_CLIP,
        optimizer=OptimizerConfig(
            lr=lr,
            lr_batch_size=None,
            weight_decay=weight_decay,
            betas=(0.9, 0.95),
            warmup_epochs=2,
            min_lr=0.0,
            clip=clip,
        ),
        loop=Loop(epochs=epochs, batch_size=batch_size, precision="bf16-mixed"),
    )


def bind_audioset_audio() -> BindTraining:
    """Sound bound to the pictures of the same videos, as on AudioSet, 64 epochs (Table 6.5).

    Table: audioset/train.csv with the columns image and audio, both the path of a video. Of pictures, basic
    augmentation, random crops and changes of colour: Table 6.6e has it in use, where Table 6.5 has a dash.
    Command: torchrun --nproc-per-node 8 -m vitrail train bind_audioset_audio --loop.devices 8 --weights CLIP
    CLIP: OpenCLIP's ViT-H/14, open_clip_pytorch_model.bin of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 66.9 % on ESC-50, 27.8 % on VGGSound (Table 6.2).
    """
    return _huge(
        "audioset",
        {"flip": 0.0, "colour_jitter": 0.4},
        Audio(width=768, heads=12, depth=12, drop_path=0.1, temperature=0.05, frequency_mask=12),
        lr=1.6e-3,
        weight_decay=0.2,
        clip=1.0,
        batch_size=2048,
        replication=1.25,
        epochs=64,
    )


def bind_sunrgbd_depth() -> BindTraining:
    """Depth bound to images of the same scene, as on SUN RGB-D, 64 epochs of 50 times its pairs (Table 6.5).

    Table: python benchmarks/bind_pairs.py sunrgbd --data SUN --output sunrgbd; sunrgbd/train.csv has the columns image
    (image/*.jpg), depth (depth_bfx/*.png, in-filled), depth.sensor and depth.focal_length.
    Command: torchrun --nproc-per-node 8 -m vitrail train bind_sunrgbd_depth --loop.devices 8 --weights CLIP
    CLIP: OpenCLIP's ViT-H/14, open_clip_pytorch_model.bin of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 35.1 % on SUN's depth, 54.0 % on NYU's (Table 6.2).
    """
    return _huge(
        "sunrgbd",
        {**_STRONG, "size": 224, "flip": 0.5, "colour_jitter": 0.4},
        Depth(
            width=384,
            heads=8,
            depth=12,
            drop_path=0.0,
            temperature=0.2,
            size=224,
            flip=0.5,
            erasing=0.25,
            encoding="sunrgbd",
        ),
        lr=1.6e-3,
        weight_decay=0.2,
        clip=1.0,
        batch_size=512,
        replication=50,
        epochs=64,
    )


def bind_llvip_thermal() -> BindTraining:
    """Heat bound to images of the same street, as on LLVIP, 64 epochs of 25 times its pairs (Table 6.5).

    Table: llvip/train.csv with the columns image (visible/train/*.jpg) and thermal (infrared/train/*.jpg).
    Command: torchrun --nproc-per-node 8 -m vitrail train bind_llvip_thermal --loop.devices 8 --weights CLIP
    CLIP: OpenCLIP's ViT-H/14, open_clip_pytorch_model.bin of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 63.4 % on LLVIP's people (Table 6.2).
    """
    return _huge(
        "llvip",
        {**_STRONG, "size": 224, "flip": 0.5, "colour_jitter": 0.4},
        Thermal(width=768, heads=12, depth=12, drop_path=0.0, temperature=0.1, size=224, flip=0.5, erasing=0.25),
        lr=5e-4,
        weight_decay=0.05,
        clip=5.0,
        batch_size=512,
        replication=25,
        epochs=64,
    )


def bind_ego4d_imu() -> BindTraining:
    """Motion bound to what the wearer's camera sees, as on Ego4D, 8 epochs (Table 6.5).

    Table: ego4d/train.csv with the columns image (a video), imu (the recording of the whole video) and start (seconds
    where a clip of 5 s begins) with seconds 5. Pictures are not augmented, as Table 6.5 has dashes.
    Command: torchrun --nproc-per-node 8 -m vitrail train bind_ego4d_imu --loop.devices 8 --weights CLIP
    CLIP: OpenCLIP's ViT-H/14, open_clip_pytorch_model.bin of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    Cost: not measured by us.
    Score: not measured by us; the thesis reports 25.0 % on Ego4D's scenarios (Table 6.2).
    """
    return _huge(
        "ego4d",
        _NONE,
        Inertial(width=512, heads=8, depth=6, drop_path=0.7, temperature=0.2),
        lr=5e-4,
        weight_decay=0.5,
        clip=1.0,
        batch_size=512,
        replication=1.0,
        epochs=8,
    )


_SMALL: dict[str, Any] = {"width": 64, "depth": 3, "heads": 2}
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
        loop=Loop(epochs=6, batch_size=64, precision="bf16-mixed", log_every=20, evaluate_every=6),
    )


def bind_actions() -> BindTraining:
    """Depth maps of people at exercise with its name, and with their motion; motion and names never meet. In miniature.

    Command: python benchmarks/bind_pairs.py actions --data DATA --output actions; vitrail train bind_actions
    Cost and score: docs/results.md.
    """
    folder = Path("actions")
    senses = {
        "depth": Depth(**_SMALL, size=96, scale=(0.5, 1.0), flip=0.0, mean=7.0, std=5.0, temperature=None),
        "text": Text(width=64, depth=1, heads=4, length=12, temperature=0.1, learned_temperature=False),
        "imu": Inertial(
            **_SMALL, drop_path=0.1, dropout=0.1, acceleration="g", rotation="deg/s", windows="centre", temperature=0.1
        ),
    }
    return BindTraining(
        model=ImageBindConfig(64, senses),
        pairs=(
            Pairs(folder / "train.csv", "depth", "text", share=2),
            Pairs(folder / "train.csv", "depth", "imu", aligned=False, update_first=False),
        ),
        validation=Pairs(folder / "test.csv", "imu", "text"),
        frozen=(),
        optimizer=replace(_SMALL_OPTIMIZER, lr=1e-3, warmup_epochs=2),
        loop=Loop(epochs=45, batch_size=64, precision="bf16-mixed", log_every=20, evaluate_every=45),
    )


_TOWER = ViTConfig(width=128, depth=4, heads=4, patch_size=8, image_size=64, pooling="mean")
_BESIDE_TOWER: dict[str, Any] = {**_SMALL, "size": 96, "scale": (0.3, 1.0), "drop_path": 0.1}


def _seen(folder: str, bound: Modality) -> BindTraining:
    """A sense that sees what a frozen tower of images sees."""
    image = Image(size=64, scale=(0.3, 1.0), backbone=_TOWER)
    table = Path(folder)
    return BindTraining(
        model=ImageBindConfig(_TOWER.width, {"image": image, bound.name: bound}),
        pairs=(Pairs(table / "train.csv", "image", bound.name),),
        validation=Pairs(table / "test.csv", "image", bound.name),
        frozen=("image.backbone",),
        weights="runs/tower",
        optimizer=replace(_SMALL_OPTIMIZER, lr=2e-3, warmup_epochs=10),
        loop=Loop(epochs=200, batch_size=64, precision="bf16-mixed", log_every=20, evaluate_every=50),
    )


def bind_roadscene() -> BindTraining:
    """Heat of roads bound to what a small frozen ViT sees of them (Tables 6.6f and 6.9). In miniature.

    Tower: vitrail train dino_mini -o runs/tower --data.root PICTURES --backbone.width 128 --backbone.depth 4
    --backbone.heads 4; or splitmask_mini likewise.
    Command: python benchmarks/bind_pairs.py roadscene --data DATA --output roadscene; vitrail train bind_roadscene
    Cost and score: docs/results.md.
    """
    return _seen("roadscene", Thermal(**_BESIDE_TOWER, mean=0.5, std=0.25, temperature=0.1))


def bind_scenes() -> BindTraining:
    """Depth of a room bound to what a small frozen ViT sees of it (Tables 6.6f and 6.9). In miniature.

    Tower: as of bind_roadscene.
    Command: python benchmarks/bind_pairs.py scenes --data DATA --output scenes; vitrail train bind_scenes
    Cost and score: docs/results.md.
    """
    return _seen("scenes", Depth(**_BESIDE_TOWER, temperature=0.2))
