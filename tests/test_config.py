import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from vitrail.backbones.resnet import ResNetConfig
from vitrail.backbones.vit import ViTConfig
from vitrail.backbones.xcit import XCiTConfig
from vitrail.config import from_json, to_json
from vitrail.data.augmentation import EvalTransform, Mixing, TrainTransform
from vitrail.data.datasets import ImageData
from vitrail.data.loader import LoaderConfig
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.errors import VitrailError


def test_dataclasses_are_tagged_and_come_back_equal():
    for config in (XCiTConfig(width=64), Loop(steps=3, ema=0.9, monitor="top1"), ImageData(Path("a"), list=Path("b"))):
        assert from_json(to_json(config)) == config
    assert to_json(XCiTConfig())["type"] == "backbones.xcit.XCiTConfig"


def test_types_follow_the_declaration():
    config = from_json({"type": "engine.experiment.Loop", "epochs": 3, "steps": None, "devices": 2})
    assert isinstance(config.epochs, float) and isinstance(config.devices, int)
    assert isinstance(from_json({"type": "data.datasets.ImageData", "root": "photos"}).root, Path)


def test_tuples_and_plain_values():
    assert from_json(to_json({"a": (1, "x", None, True), "b": [1.5]})) == {"a": (1, "x", None, True), "b": (1.5,)}


@dataclass(frozen=True)
class Foreign:
    x: int = 0


@pytest.mark.parametrize("value", [Foreign(), object(), {1, 2}])
def test_what_cannot_be_stored_is_a_mistake_of_ours(value):
    with pytest.raises(TypeError):
        to_json(value)


@pytest.mark.parametrize(
    "tag",
    ["os.path", "subprocess.Popen", "errors.VitrailError", "config.Path", "..os.PathLike", "backbones.xcit.XCITS", 7],
)
def test_only_dataclasses_of_vitrail_are_built(tag):
    with pytest.raises(VitrailError, match="open it with the version that wrote it"):
        from_json({"type": tag})


def test_unknown_fields_are_named():
    with pytest.raises(VitrailError, match=r"sets hue, zoom of backbones\.xcit\.XCiTConfig, which this version"):
        from_json({"type": "backbones.xcit.XCiTConfig", "zoom": 1, "hue": 2})


def test_missing_fields_are_named():
    with pytest.raises(VitrailError, match=r"lacks root of data\.datasets\.ImageData; open it with"):
        from_json({"type": "data.datasets.ImageData"})


@pytest.mark.parametrize(
    ("config", "values", "wanted"),
    [
        (Loop, {"epochs": 0.0}, "above 0 and at most 1000000000"),
        (Loop, {"steps": 10**20}, "at least 1 and at most 1000000000000"),
        (Loop, {"batch_size": 10**12}, "at least 1 and at most 16777216"),
        (Loop, {"evaluate_every": 1e-320}, "at least 1e-06"),
        (Loop, {"evaluate_every": math.nan}, "a finite number"),
        (Loop, {"ema": 1.0}, "at least 0 and below 1"),
        (Loop, {"seed": -1}, "at least 0"),
        (OptimizerConfig, {"lr": math.nan}, "a finite number"),
        (OptimizerConfig, {"lr": -0.1}, r"at least 0 and at most 1e\+30"),
        (OptimizerConfig, {"lr_batch_size": 0}, "at least 1"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "at least 0 and below 1"),
        (OptimizerConfig, {"layer_decay": 0.0}, "above 0 and at most 1"),
        (OptimizerConfig, {"clip": 0.0}, "above 0"),
        (LoaderConfig, {"workers": -1}, "at least 0"),
        (TrainTransform, {"size": 0}, "at least 1 and at most 16384"),
        (TrainTransform, {"scale": (0.5, 1.5)}, "above 0 and at most 1"),
        (TrainTransform, {"std": (0.2, 0.0, 0.2)}, "above 0"),
        (TrainTransform, {"flip": 2.0}, "at least 0 and at most 1"),
        (EvalTransform, {"size": -5}, "at least 1"),
        (EvalTransform, {"crop_ratio": 0.0}, "above 0"),
        (EvalTransform, {"crop_ratio": 2.0}, "at most 1"),
        (Mixing, {"mixup": -1.0}, "at least 0"),
        (XCiTConfig, {"heads": 0}, "at least 1"),
        (XCiTConfig, {"heads": "many"}, "a whole number"),
        (XCiTConfig, {"depth": 1.5}, "a whole number"),
        (XCiTConfig, {"drop_path": "much"}, "a finite number"),
        (XCiTConfig, {"patch_projection": "conv"}, "one of convolutional, linear"),
        (ViTConfig, {"attention": "softmx"}, "one of softmax, spatial_reduction_average, .*, axial"),
        (ResNetConfig, {"depth": 34}, "one of 18, 50, 101"),
        (OptimizerConfig, {"schedule": "step"}, "one of cosine, linear, constant"),
        (Loop, {"mode": "most"}, "one of max, min"),
        (LoaderConfig, {"on_corrupt": "go"}, "one of stop, skip"),
        (XCiTConfig, {"depth": -1}, "at least 1"),
        (XCiTConfig, {"drop_path": 1.0}, "at least 0 and below 1"),
        (ViTConfig, {"image_size": 0}, "at least 1"),
    ],
)
def test_values_out_of_range_are_refused(config, values, wanted):
    ((name, value),) = values.items()
    shown = r".*" if isinstance(value, tuple) else value
    with pytest.raises(VitrailError, match=rf"^{config.__name__}\.{name} is {shown}; it must be {wanted}\.$"):
        config(**values)


def test_values_at_the_ends_of_their_ranges_are_taken():
    OptimizerConfig(lr=0, betas=(0.0, 0.0), layer_decay=1, weight_decay_end=None, clip=None)
    TrainTransform(size=1, scale=(1.0, 1.0), flip=1, erasing=0)
    EvalTransform(size=1, crop_ratio=1)
    Loop(steps=1, batch_size=1, ema=0, seed=0)
