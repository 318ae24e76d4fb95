from dataclasses import dataclass
from pathlib import Path

import pytest

from vitrail.backbones.xcit import XCiTConfig
from vitrail.config import from_json, to_json
from vitrail.data.datasets import ImageData
from vitrail.engine.experiment import Loop
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
