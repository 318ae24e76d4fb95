import json

import pytest
import torch

from vitrail.config import from_json, to_json
from vitrail.errors import VitrailError
from vitrail.recipes import load_recipe, recipe_names, recipe_summaries


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_states_what_it_is_and_survives_json(name):
    recipe = load_recipe(name)
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe
    assert recipe_summaries()[name].endswith(".")


@pytest.mark.parametrize("model", ["xcit_large_24_p8", "deit_small_patch16_224", "resnet50"])
def test_the_imagenet_recipe_is_the_same_for_its_peers(model):
    recipe = load_recipe("xcit_imagenet", model)
    own = load_recipe("xcit_imagenet")
    assert (recipe.optimizer, recipe.loop, recipe.loader, recipe.train_transform, recipe.mixing) == (
        own.optimizer,
        own.loop,
        own.loader,
        own.train_transform,
        own.mixing,
    )
    with torch.device("meta"):
        assert recipe.backbone.build(1000).num_classes == 1000


def test_the_imagenet_recipe_has_the_published_values():
    recipe = load_recipe("xcit_imagenet")
    assert (recipe.loop.epochs, recipe.loop.batch_size, recipe.loop.ema) == (400, 1024, 0.99996)
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.optimizer.weight_decay) == (5e-4, 512, 0.05)
    assert (recipe.optimizer.warmup_epochs, recipe.optimizer.min_lr, recipe.optimizer.schedule) == (5, 1e-5, "cosine")
    assert (recipe.mixing.mixup, recipe.mixing.cutmix, recipe.label_smoothing) == (0.8, 1.0, 0.1)
    assert (recipe.train_transform.rand_augment, recipe.train_transform.erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (recipe.eval_transform.crop_ratio, recipe.loader.repeats) == (1.0, 3)


@pytest.mark.parametrize(
    ("model", "rate"), [("tiny_24", 0.0), ("small_12", 0.05), ("small_24", 0.1), ("medium_24", 0.15)]
)
def test_stochastic_depth_grows_with_the_model(model, rate):
    assert load_recipe("xcit_imagenet", f"xcit_{model}_p16").backbone.drop_path == rate


def test_an_unknown_recipe_is_named():
    with pytest.raises(VitrailError, match="There is no recipe nonsense; `vitrail recipes` lists them"):
        load_recipe("nonsense")
