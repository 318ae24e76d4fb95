"""The three methods, tiny, on the bundled photos; processes of their own, as the engine's tests have them."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vitrail.data.loader import LoaderConfig
from vitrail.engine.experiment import Loop
from vitrail.pretrain.pretraining import Pretraining
from vitrail.recipes import load_recipe

_SPEC = importlib.util.spec_from_file_location("engine_conftest", Path(__file__).parents[1] / "engine" / "conftest.py")
_ENGINE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ENGINE)
forked, all_tensors = _ENGINE.forked, _ENGINE.all_tensors


@pytest.fixture
def tiny() -> Callable[..., Pretraining]:
    """A miniature recipe, smaller still: `tiny("splitmask", steps=4, backbone={...}, decoder_depth=1)`."""

    def make(method: str, *, backbone: dict | None = None, loop: dict | None = None, **fields) -> Pretraining:
        recipe = load_recipe(f"{method}_mini")
        network = {"width": 16, "depth": 2, "heads": 2, "image_size": 32, "drop_path": 0.0} | (backbone or {})
        smaller = {"eval_transform": replace(recipe.eval_transform, size=32)}
        if method == "dino":
            views = {
                name: replace(getattr(recipe.crops, name), size=size)
                for name, size in (("first", 32), ("second", 32), ("small", 16))
            }
            smaller |= {"crops": replace(recipe.crops, **views, count=2), "outputs": 32, "hidden": 16, "bottleneck": 8}
        else:
            smaller |= {
                "view": replace(recipe.view, size=32),
                "tokenizer": replace(recipe.tokenizer, words=16),
                "masks": replace(recipe.masks, least=2, most=5),
            }
        return replace(
            recipe,
            backbone=replace(recipe.backbone, **network),
            loop=Loop(**{"steps": 3, "batch_size": 8, "accelerator": "cpu", "log_every": 1} | (loop or {})),
            loader=LoaderConfig(workers=0),
            **(smaller | fields),
        )

    return make
