"""A backbone as the encoder of images: it says what it says alone, stays as it is, and others learn to say the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow

from vitrail.backbones.resnet import RESNETS
from vitrail.backbones.vit import ViTConfig
from vitrail.backbones.xcit import XCiTConfig
from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.modalities.image import CLIP_MEAN, CLIP_STD, Image
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.tower import BackboneEncoder
from vitrail.bind.training.binding import BindTraining, Pairs
from vitrail.cli.main import main
from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from vitrail.data.datasets import ImageData
from vitrail.data.images import read_image
from vitrail.data.loader import LoaderConfig
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.engine.processes import seed_all
from vitrail.errors import VitrailError
from vitrail.pretrain.splitmask import SplitMask
from vitrail.pretrain.tokenizers import TokenizerConfig
from vitrail.pretrain.views import View
from vitrail.recipes import train
from vitrail.weights import open_network

VIT = ViTConfig(width=16, depth=2, heads=2, patch_size=8, image_size=16, pooling="mean")
XCIT = XCiTConfig(width=16, depth=1, heads=2, class_depth=1)
STEPS = {"loader": LoaderConfig(workers=0), "loop": Loop(steps=3, batch_size=4, accelerator="cpu")}


def images(backbone, **fields):
    return Image(size=16, flip=0.0, scale=(0.5, 1.0), colour_jitter=0.0, backbone=backbone, **fields)


@pytest.fixture
def streets(tmp_path):
    """Eight pictures in colour and in heat, and their table."""
    generator, lines = np.random.default_rng(0), ["image,thermal"]
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        colour = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Pillow.fromarray(colour).resize((32, 24)).save(tmp_path / "pictures" / f"{number}.png")
        Pillow.fromarray(255 - colour[..., 0]).resize((32, 24)).save(tmp_path / f"{number}.png")
        lines.append(f"pictures/{number}.png,{number}.png")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def experiment(streets):
    heat = Thermal(width=16, depth=1, heads=2, size=16, flip=0.0, erasing=0.0)
    return BindTraining(
        model=ImageBindConfig(8, {"image": images(VIT), "thermal": heat}),
        pairs=(Pairs(streets / "pairs.csv", "image", "thermal"),),
        frozen=("image.backbone",),
        optimizer=OptimizerConfig(lr=0.01, lr_batch_size=None, warmup_epochs=0),
        **STEPS,
    )


@pytest.fixture
def pretrained(streets):
    """The folder of a run of SplitMask on the pictures."""
    mask = SplitMask(
        data=ImageData(streets / "pictures"),
        backbone=VIT,
        view=View(size=16),
        eval_transform=EvalTransform(size=16),
        tokenizer=TokenizerConfig(words=4),
        **STEPS,
    )
    train(mask, streets / "splitmask")
    return streets / "splitmask"


@pytest.mark.parametrize(("config", "width"), [(VIT, 16), (XCIT, 16), (RESNETS["resnet50"], 2048)])
@torch.inference_mode()
def test_features_are_those_of_the_backbone_alone(config, width):
    torch.manual_seed(0)
    encoder = images(config).build(8).eval()
    torch.manual_seed(0)
    alone = config.build().eval()
    clip = torch.randn(2, 3, 2, 32, 32)
    first, last = (alone.forward_features(clip[:, :, frame]).class_token for frame in (0, 1))
    torch.testing.assert_close(encoder.features(clip[:, :, 0]), first)
    torch.testing.assert_close(encoder.features(clip), (first + last) / 2)
    assert encoder.head.weight.shape == (8, width) and encoder.head.bias is None
    torch.testing.assert_close(encoder(clip), (first + last) / 2 @ encoder.head.weight.mT)


def test_what_it_takes():
    encoder = BackboneEncoder(VIT, 8)
    shapes = {(2, 3, 16, 16): True, (2, 3, 2, 9, 16): True, (2, 3, 3, 16, 16): False, (2, 1, 16, 16): False}
    assert {shape: encoder.accepts(shape) for shape in shapes} == shapes
    model = ImageBindConfig(8, {"image": images(VIT)}).build().eval()
    views = torch.randn(2, 3, 3, 16, 16)  # three views of each of two pictures
    made = model.encode({"image": views})["image"]
    expected = F.normalize(model.encoders["image"](views[0]), dim=1).mean(dim=0)
    torch.testing.assert_close(made[0], F.normalize(expected, dim=0))
    with pytest.raises(VitrailError, match=r"Inputs of shape \[2, 1, 16, 16\] do not fit the backbone"):
        encoder(torch.zeros(2, 1, 16, 16))


def test_pictures_are_normalized_as_the_backbone_knows_them(streets):
    path = streets / "pictures" / "0.png"
    assert images(VIT).normalization == (IMAGENET_MEAN, IMAGENET_STD)
    assert images(None).normalization == (CLIP_MEAN, CLIP_STD)
    half = images(VIT, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    expected = EvalTransform(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5)).build()(read_image(path))
    torch.testing.assert_close(half.read(path)[0], expected)
    sampled, plain = (one.sample(path, torch.Generator().manual_seed(1)) for one in (half, images(None)))
    values = plain * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    torch.testing.assert_close(sampled, (values - 0.5) / torch.tensor([0.5, 0.25, 0.5])[:, None, None])


def test_a_pretrained_tower_stays_and_another_sense_learns(experiment, pretrained, streets):
    train(replace(experiment, weights=str(pretrained)), streets / "run")
    model = ImageBind.load(streets / "run")
    backbone = open_network(pretrained).model
    state = model.encoders["image"].backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in backbone.state_dict().items())
    seed_all(experiment.loop.seed)
    task = experiment.build_task()
    fresh = task.model.encoders["thermal"].state_dict()
    head = model.encoders["image"].head
    assert not torch.equal(head.weight, task.model.encoders["image"].head.weight)
    assert any(not torch.equal(fresh[name], value) for name, value in model.encoders["thermal"].state_dict().items())

    path = streets / "pictures" / "3.png"
    with torch.inference_mode():
        features = backbone.forward_features(model.modality("image").read(path)).class_token
        expected = F.normalize(head(features), dim=1)
    torch.testing.assert_close(model.embed({"image": [path]})["image"], expected)


def test_averages_of_batches_stay_too(experiment, streets):
    modalities = {**experiment.model.modalities, "image": images(XCIT)}
    one = replace(experiment, model=ImageBindConfig(8, modalities))
    train(one, streets / "run")
    encoder = ImageBind.load(streets / "run").encoders["image"]
    counts = [value for name, value in encoder.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts and not any(counts)


def test_one_that_is_not_frozen_starts_from_its_weights_and_learns(experiment, pretrained, streets):
    train(replace(experiment, weights=str(pretrained), frozen=()), streets / "run")
    tower = ImageBind.load(streets / "run").encoders["image"].backbone.state_dict()
    known = open_network(pretrained).model.state_dict()
    apart = {name: float((tower[name] - value).abs().max()) for name, value in known.items()}
    assert 0 < max(apart.values()) < 0.05  # three steps of 0.01 at most from where it began


def test_several_frozen_senses_start_from_a_model(experiment, pretrained, streets):
    """So that another sense can be added to a model of which nothing may change any more, its head neither."""
    train(replace(experiment, weights=str(pretrained)), streets / "first")
    both = replace(
        experiment,
        frozen=("image", "thermal"),
        weights=str(streets / "first"),
    )
    task = both.build_task()
    assert task.tower is None
    task.start_from(str(streets / "first"))
    first = ImageBind.load(streets / "first").state_dict()
    assert all(torch.equal(value, first[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize("config", [VIT, XCIT])
@torch.inference_mode()
def test_files_and_search(experiment, streets, config, capsys):
    torch.manual_seed(0)
    modalities = {**experiment.model.modalities, "image": images(config)}
    model = ImageBindConfig(8, modalities).build().eval()
    model.save(streets / "model.safetensors")
    loaded = ImageBind.load(streets / "model.safetensors")
    assert loaded.config == model.config
    paths = [streets / "pictures" / f"{number}.png" for number in range(8)]
    expected = model.embed({"image": paths})["image"]
    torch.testing.assert_close(loaded.embed({"image": paths})["image"], expected)
    small = ImageBind.load(streets / "model.safetensors", weights="bfloat16").embed({"image": paths})["image"]
    assert (1 - (small * expected).sum(dim=1)).max() < 1e-3

    index, model = str(streets / "pictures.index"), ["--model", str(streets / "model.safetensors"), "--device", "cpu"]
    assert main(["bind", "index", str(streets / "pictures"), "-o", index, *model]) == 0
    capsys.readouterr()
    assert main(["bind", "search", index, "--image", str(paths[3]), *model]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "3.png"
