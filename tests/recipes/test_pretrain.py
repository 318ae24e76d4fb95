import pytest
import torch

from vitrail.errors import VitrailError
from vitrail.recipes import load_recipe


@pytest.mark.parametrize(
    ("name", "epochs"),
    [  # Table 4.3
        ("imagenet", 300),
        ("inaturalist_2018", 800),
        ("inaturalist_2019", 1400),
        ("food101", 5000),
        ("cars", 5000),
        ("clipart", 5000),
        ("painting", 5000),
        ("sketch", 5000),
        ("ade20k", 21_000),
        ("coco", 3000),
    ],
)
def test_splitmask_has_the_values_of_the_thesis(name, epochs):
    recipe = load_recipe(f"splitmask_{name}")
    assert (recipe.loop.epochs, recipe.loop.batch_size) == (epochs, 2048)
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.optimizer.weight_decay) == (1.5e-3, 2048, 0.05)
    assert (recipe.decoder_depth, recipe.temperature, recipe.inpaint, recipe.match) == (2, 0.2, True, True)
    assert (recipe.tokenizer.kind, recipe.tokenizer.words) == ("random_projection", 8192)
    small = name in ("cars", "clipart", "painting", "sketch")
    masks = ("uniform", 0.75) if small else ("block", 0.5)
    assert (recipe.masks.kind, recipe.masks.ratio) == masks and (recipe.masks.least, recipe.masks.most) == (16, 75)
    assert bool(recipe.view.solarize and recipe.view.greyscale and recipe.view.blur and recipe.view.jitter) == small
    assert recipe.view.scale == ((0.08, 0.25) if name == "ade20k" else (0.08, 1.0))
    with torch.device("meta"):
        assert recipe.build_task().head.out_features == 8192


def test_beit_and_dino_and_fine_tuning_have_the_published_values():
    assert load_recipe("beit_imagenet").masks.ratio == 0.4
    dino = load_recipe("dino_imagenet", "xcit_small_12_p16")
    assert (dino.outputs, dino.momentum, dino.crops.count, dino.optimizer.weight_decay_end) == (65536, 0.996, 8, 0.4)
    tuned = load_recipe("pretrain_finetune")
    assert (tuned.optimizer.lr, tuned.optimizer.lr_batch_size, tuned.optimizer.layer_decay) == (4e-3, 1024, 0.65)
    assert (tuned.loop.epochs, tuned.optimizer.warmup_epochs) == (100, 20)
    assert (tuned.mixing.mixup, tuned.mixing.cutmix, tuned.backbone.pooling) == (0.8, 1.0, "mean")
    assert tuned.backbone == load_recipe("splitmask_imagenet").backbone


def test_only_a_vit_can_leave_patches_out():
    with pytest.raises(VitrailError, match="is no ViT"):
        load_recipe("splitmask_imagenet", "xcit_small_12_p16")
