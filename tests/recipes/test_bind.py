"""The recipes of ImageBind have the values of Table 6.5."""

import dataclasses

import pytest

from vitrail.bind import ImageBindConfig
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.modalities.thermal import Thermal
from vitrail.engine.optim import OptimizerConfig
from vitrail.recipes import load_recipe

COLUMNS = {
    "bind_audioset_audio": {
        "sense": Audio,
        "embedding dim.": 768,
        "heads": 12,
        "layers": 12,
        "lr": 1.6e-3,
        "weight decay": 0.2,
        "batch size": 2048,
        "clipping": 1.0,
        "replication": 1.25,
        "epochs": 64,
        "stochastic depth": 0.1,
        "temperature": 0.05,
    },
    "bind_sunrgbd_depth": {
        "sense": Depth,
        "embedding dim.": 384,
        "heads": 8,
        "layers": 12,
        "lr": 1.6e-3,
        "weight decay": 0.2,
        "batch size": 512,
        "clipping": 1.0,
        "replication": 50,
        "epochs": 64,
        "stochastic depth": 0.0,
        "temperature": 0.2,
    },
    "bind_llvip_thermal": {
        "sense": Thermal,
        "embedding dim.": 768,
        "heads": 12,
        "layers": 12,
        "lr": 5e-4,
        "weight decay": 0.05,
        "batch size": 512,
        "clipping": 5.0,
        "replication": 25,
        "epochs": 64,
        "stochastic depth": 0.0,
        "temperature": 0.1,
    },
    "bind_ego4d_imu": {
        "sense": Inertial,
        "embedding dim.": 512,
        "heads": 8,
        "layers": 6,
        "lr": 5e-4,
        "weight decay": 0.5,
        "batch size": 512,
        "clipping": 1.0,
        "replication": 1.0,
        "epochs": 8,
        "stochastic depth": 0.7,
        "temperature": 0.2,
    },
}


@pytest.mark.parametrize("name", COLUMNS)
def test_table_6_5(name):
    recipe, expected = load_recipe(name), COLUMNS[name]
    (pairs,) = recipe.pairs
    sense = recipe.model.modalities[pairs.second]
    assert pairs.first == "image" and pairs.aligned
    assert {
        "sense": type(sense),
        "embedding dim.": sense.width,
        "heads": sense.heads,
        "layers": sense.depth,
        "lr": recipe.optimizer.lr,
        "weight decay": recipe.optimizer.weight_decay,
        "batch size": recipe.loop.batch_size,
        "clipping": recipe.optimizer.clip,
        "replication": pairs.replication,
        "epochs": recipe.loop.epochs,
        "stochastic depth": sense.drop_path,
        "temperature": sense.temperature,
    } == expected
    assert not sense.learned_temperature
    assert dataclasses.replace(recipe.optimizer, lr=0.0, weight_decay=0.0, clip=None) == OptimizerConfig(
        name="adamw", lr=0.0, lr_batch_size=None, weight_decay=0.0, betas=(0.9, 0.95), warmup_epochs=2, min_lr=0.0
    )


@pytest.mark.parametrize("name", ["bind_sunrgbd_depth", "bind_llvip_thermal"])
def test_augmentation_of_what_is_seen(name):
    recipe = load_recipe(name)
    image, seen = recipe.model.modalities["image"], recipe.model.modalities[recipe.pairs[0].second]
    assert (image.size, image.interpolation, image.flip, image.erasing) == (224, "bilinear", 0.5, 0.25)
    assert (image.rand_augment, image.colour_jitter) == ("rand-m9-mstd0.5", 0.4)
    assert (seen.size, seen.flip, seen.erasing) == (224, 0.5, 0.25)


def test_augmentation_of_what_is_not_seen():
    audio, imu = load_recipe("bind_audioset_audio").model, load_recipe("bind_ego4d_imu").model
    assert audio.modalities["audio"].frequency_mask == 12
    for model, jitter in ((audio, 0.4), (imu, 0.0)):
        image = model.modalities["image"]
        assert (image.flip, image.rand_augment, image.erasing, image.colour_jitter) == (0.0, "", 0.0, jitter)
    assert imu.modalities["image"].scale == (1.0, 1.0)  # the central square: no larger crop fits


@pytest.mark.parametrize("name", COLUMNS)
def test_image_and_text_are_those_of_openclip_and_frozen(name):
    recipe = load_recipe(name)
    assert recipe.frozen == ("image", "text") and recipe.weights == "open_clip_pytorch_model.bin"
    model: ImageBindConfig = recipe.model
    assert model.dimension == 1024
    sizes = {
        sense: (one.width, one.depth, one.heads, one.norm_epsilon, one.activation, one.head_width)
        for sense, one in model.modalities.items()
        if sense in recipe.frozen
    }
    assert sizes == {"image": (1280, 32, 16, 1e-5, "gelu", None), "text": (1024, 24, 16, 1e-5, "gelu", None)}
    assert (model.modalities["image"].patch_size, model.modalities["image"].size) == (14, 224)
