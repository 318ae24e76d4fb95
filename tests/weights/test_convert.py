import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision

from vitrail.backbones.resnet import ResNetConfig
from vitrail.backbones.vit import VITS, ViTConfig
from vitrail.backbones.xcit import XCITS, XCiTConfig
from vitrail.errors import FileError
from vitrail.tensors import read_tensors
from vitrail.weights.convert import find_backbone, load_backbone, to_timm

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"

SMALL = XCiTConfig(width=32, heads=4, depth=2)


def timm_xcit(name="xcit_small_12_p16_224", **overrides):
    return timm.create_model(name, **overrides)


def small_timm(num_classes=7):
    return timm_xcit(embed_dim=32, num_heads=4, depth=2, num_classes=num_classes)


def official(timm_state):
    """timm's state dict of an XCiT as the official files have it: queries, keys, values in one, `pos_embeder`."""
    state = {key.replace("pos_embed.", "pos_embeder."): tensor for key, tensor in timm_state.items()}
    for key in [key for key in state if ".attn.q." in key]:
        parts = [state.pop(key.replace(".q.", f".{letter}.")) for letter in "qkv"]
        state[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    return state


def assert_same_as_timm(ours, theirs, images):
    with torch.inference_mode():
        expected, actual = theirs(images), ours(images)
        tokens = theirs.forward_features(images)
        features = ours.forward_features(images)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (features.class_token - tokens[:, 0]).abs().max() <= 1e-4 * tokens[:, 0].abs().max()


@pytest.mark.parametrize("name", XCITS)
def test_every_xcit_is_timms(name, fill):
    """Two blocks instead of all, for time; `test_every_whole_xcit_is_timms` takes all."""
    theirs = fill(timm_xcit(f"{name}_224", depth=2, num_classes=11))
    config = replace(XCITS[name], depth=2)
    ours = config.build(11).eval()
    report = load_backbone(ours, find_backbone(theirs.state_dict()))
    assert (report.layout, report.left_aside, report.fresh) == ("timm XCiT", (), ())
    assert_same_as_timm(ours, theirs, torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)))
    assert_same_as_timm(ours, theirs, torch.randn(1, 3, 37, 83, generator=torch.Generator().manual_seed(2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", XCITS)
def test_every_whole_xcit_is_timms(name, fill):
    theirs = fill(timm_xcit(f"{name}_224"))
    ours = XCITS[name].build(1000).eval()
    load_backbone(ours, find_backbone(theirs.state_dict()))
    assert_same_as_timm(ours, theirs, torch.randn(1, 3, 90, 64, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", VITS)
def test_every_vit_is_timms(name, fill):
    """One block, and positions of a small picture of odd proportions, for time."""
    theirs = fill(timm.create_model(name, depth=1, num_classes=11, dynamic_img_size=True, dynamic_img_pad=True))
    ours = replace(VITS[name], depth=1).build(11).eval()
    report = load_backbone(ours, find_backbone(theirs.state_dict()))
    assert (report.layout, report.left_aside, report.fresh) == ("timm ViT", (), ())
    images = torch.randn(2, 3, 70, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, tokens = theirs(images), theirs.forward_features(images)
        actual, features = ours(images), ours.forward_features(images)
    leading = theirs.num_prefix_tokens
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (features.class_token - tokens[:, 0]).abs().max() <= 1e-4 * tokens.abs().max()
    assert (features.patches - tokens[:, leading:]).abs().max() <= 1e-4 * tokens.abs().max()
    again = to_timm(ours)
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in theirs.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VITS if name.startswith("deit")])
def test_every_whole_deit_is_timms(name, fill):
    theirs = fill(timm.create_model(name))
    ours = VITS[name].build(1000).eval()
    load_backbone(ours, find_backbone(theirs.state_dict()))
    images = torch.randn(1, 3, ours.config.image_size, ours.config.image_size)
    with torch.inference_mode():
        expected = theirs(images)
        assert (ours(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


def small_timm_vit(**options):
    options = {"embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 64, "num_classes": 7} | options
    return timm.create_model("vit_small_patch16_224", **options)


SMALL_VIT = ViTConfig(width=32, heads=2, depth=2, image_size=64)


def test_mean_pooled_and_scaled_vit(fill):
    theirs = fill(small_timm_vit(global_pool="avg", init_values=0.1))
    ours = replace(SMALL_VIT, pooling="mean", layer_scale=0.1).build(7).eval()
    load_backbone(ours, find_backbone(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert (ours(images) - theirs(images)).abs().max() <= 1e-5
    assert to_timm(ours).keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("distilled", [False, True])
def test_learned_positions_are_resampled_for_another_grid(distilled, fill):
    name = "deit_small_distilled_patch16_224" if distilled else "vit_small_patch16_224"
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 1, "num_classes": 7}
    theirs = fill(timm.create_model(name, img_size=64, **sizes))
    larger = timm.create_model(name, img_size=96, **sizes).eval()
    checkpoint_filter = timm.models.vision_transformer.checkpoint_filter_fn
    larger.load_state_dict(checkpoint_filter(dict(theirs.state_dict()), larger))
    ours = replace(SMALL_VIT, depth=1, image_size=96, distillation_token=distilled).build(7).eval()
    load_backbone(ours, find_backbone(theirs.state_dict()))
    assert torch.equal(ours.positions.table, larger.pos_embed)
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert (ours(images) - larger(images)).abs().max() <= 1e-5
    with pytest.raises(FileError, match=r"positions.table is \[1, 7, 32\] there and \[1, 3\d, 32\] in the model"):
        load_backbone(ours, find_backbone(theirs.state_dict() | {"pos_embed": torch.zeros(1, 7, 32)}))


def test_two_tensors_for_one_place():
    state = small_timm_vit().state_dict()
    with pytest.raises(FileError, match=r"has two tensors for one place, with norm.weight; remove one of them\.$"):
        find_backbone(state | {"fc_norm.weight": torch.ones(32)})


def test_distilled_heads_are_skipped_together(fill):
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 64, "num_classes": 7}
    backbone = find_backbone(timm.create_model("deit_small_distilled_patch16_224", **sizes).state_dict())
    model = replace(SMALL_VIT, distillation_token=True).build(3)
    assert len(load_backbone(model, backbone, "auto").fresh) == 4
    assert torch.equal(model.distillation_token, backbone.state["distillation_token"])
    with pytest.raises(FileError, match=r"has no place for its dist_token, head_dist.weight, head_dist.bias; build"):
        load_backbone(SMALL_VIT.build(7), backbone)


def test_resnet_is_torchvisions(fill):
    theirs = fill(torchvision.models.resnet18(num_classes=7))
    ours = ResNetConfig(18).build(7).eval()
    assert load_backbone(ours, find_backbone(theirs.state_dict())).layout == "torchvision ResNet"
    images = torch.randn(1, 3, 64, 48)
    with torch.inference_mode():
        assert (ours(images) - theirs(images)).abs().max() <= 1e-5
    again = ResNetConfig(18).build(7)
    prefixed = {f"model.backbone.{key}": tensor for key, tensor in ours.state_dict().items()}
    assert load_backbone(again, find_backbone(prefixed)).layout == "Vitrail"
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in ours.state_dict().items())


@pytest.mark.shared
@pytest.mark.skipif(not PARITY.exists(), reason="no shared data beside the repository")
@pytest.mark.parametrize("name", json.loads((PARITY / "xcit/shapes.json").read_text()) if PARITY.exists() else [])
def test_outputs_are_the_official_ones(name, monkeypatch):
    monkeypatch.syspath_prepend(str(PARITY))
    import seeded_weights

    reference = np.load(PARITY / "xcit/reference.npz")
    shapes = json.loads((PARITY / "xcit/shapes.json").read_text())[name]
    state = {key: torch.from_numpy(value) for key, value in seeded_weights.seeded_state_dict(shapes).items()}
    sys.modules.pop("seeded_weights")
    model = XCITS[name].build(1000).eval()
    report = load_backbone(model, find_backbone({f"model.{key}": value for key, value in state.items()}))
    assert (report.layout, report.left_aside) == ("official XCiT", ())
    patch = model.patch_size
    images = torch.from_numpy(seeded_weights.seeded_input(name, (2, 3, 4 * patch, 6 * patch)))
    with torch.inference_mode():
        features, logits = model.forward_features(images).class_token.numpy(), model(images).numpy()
    for actual, expected in ((features, reference[f"{name}.features"]), (logits, reference[f"{name}.logits"])):
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
        assert np.abs(actual - expected).max() <= 1e-4
    assert sum(parameter.numel() for parameter in model.parameters()) == reference[f"{name}.params"]


def test_round_trip_official_ours_timm_ours_is_exact(fill):
    theirs = fill(small_timm())
    ours = SMALL.build(7)
    assert load_backbone(ours, find_backbone(official(theirs.state_dict()))).layout == "official XCiT"
    state = to_timm(ours)
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items())
    again = SMALL.build(7)
    load_backbone(again, find_backbone(state))
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in ours.state_dict().items())


def test_to_timm_loads_strictly_and_does_the_same(fill):
    ours = fill(SMALL.build(7))
    theirs = small_timm().eval()
    theirs.load_state_dict(to_timm(ours), strict=True)
    assert_same_as_timm(ours, theirs, torch.randn(2, 3, 33, 50))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": {key: value * 0 for key, value in state.items()}, "model_ema": state},
    ],
    ids=["bare", "official", "parallel", "averaged"],
)
def test_wrappers(wrap, fill, tmp_path):
    theirs = fill(small_timm())
    torch.save(wrap(official(theirs.state_dict())), tmp_path / "file.pth")
    tensors, _ = read_tensors(tmp_path / "file.pth")
    model = SMALL.build(7)
    load_backbone(model, find_backbone(tensors))
    assert torch.equal(to_timm(model)["blocks.1.gamma3"], theirs.state_dict()["blocks.1.gamma3"])


def test_full_dino_checkpoint_gives_the_teacher(fill):
    state = official(fill(small_timm(0)).state_dict())
    projector = {"head.mlp.0.weight": torch.zeros(5, 32), "head.last_layer.weight_g": torch.ones(9, 1)}
    tensors = {f"student.module.backbone.{key}": value * 0 for key, value in state.items()}
    tensors |= {f"teacher.backbone.{key}": value for key, value in state.items()}
    tensors |= {f"teacher.{key}": value for key, value in projector.items()}
    model = SMALL.build(0)
    report = load_backbone(model, find_backbone(tensors))
    assert torch.equal(to_timm(model)["cls_token"], state["cls_token"])
    assert sorted(report.left_aside) == sorted(key for key in tensors if not key.startswith("teacher.backbone."))


def test_detector_gives_its_backbone(fill):
    """The official detectors have no class token and no final norm, but a pyramid inside the backbone."""
    state = official(fill(small_timm(0)).state_dict())
    of_classes = ("cls_token", "cls_attn_blocks", "norm.")
    dense = {f"backbone.{key}": value for key, value in state.items() if not key.startswith(of_classes)}
    others = {"backbone.fpn1.0.weight": torch.zeros(32, 32, 2, 2), "neck.lateral_convs.0.conv.weight": torch.zeros(1)}
    model = XCiTConfig(width=32, heads=4, depth=2, class_depth=0).build()
    report = load_backbone(model, find_backbone(dense | others))
    assert report.left_aside == tuple(others)
    assert torch.equal(model.patches[0][0].weight, state["patch_embed.proj.0.0.weight"])
    with pytest.raises(FileError, match=r"lacks class_token, norm.weight, norm.bias and 32 more; build the one"):
        load_backbone(SMALL.build(), find_backbone(dense | others))


def test_dense_model_leaves_the_class_attention_of_a_classifier_aside(fill):
    state = official(fill(small_timm()).state_dict())
    model = XCiTConfig(width=32, heads=4, depth=2, class_depth=0).build()
    report = load_backbone(model, find_backbone(state))
    assert {key.split(".")[0] for key in report.left_aside} == {"cls_token", "cls_attn_blocks", "norm", "head"}
    assert torch.equal(model.blocks[1].local.norm.running_var, state["blocks.1.local_mp.bn.running_var"])


def test_training_checkpoint_gives_the_averaged_backbone(fill):
    tensors = {}
    for seed, part in enumerate(("model", "ema")):
        model = fill(SMALL.build(7), seed)
        tensors |= {f"{part}.backbone.{key}": value for key, value in model.state_dict().items()}
    tensors["optimizer.train.backbone.norm.weight.exp_avg"] = torch.zeros(32)
    loaded = SMALL.build(7)
    report = load_backbone(loaded, find_backbone(tensors))
    assert report.layout == "Vitrail"
    assert all(torch.equal(value, tensors[f"ema.backbone.{key}"]) for key, value in loaded.state_dict().items())
    assert {key.split(".")[0] for key in report.left_aside} == {"model", "optimizer"}


def test_heads(fill):
    backbone = find_backbone(fill(small_timm(7)).state_dict())
    with pytest.raises(FileError, match="is for 7 classes and the model for 3; build the model with num_classes=7, or"):
        load_backbone(SMALL.build(3), backbone)
    for head in ("skip", "auto"):
        model = SMALL.build(3)
        before = model.head.weight.clone()
        report = load_backbone(model, backbone, head)
        assert report.fresh == ("head.bias", "head.weight")
        assert report.left_aside == ("head.bias", "head.weight")
        assert torch.equal(model.head.weight, before)
        assert torch.equal(model.norm.weight, backbone.state["norm.weight"])
    model = SMALL.build(7)
    assert load_backbone(model, backbone, "auto").fresh == ()
    assert torch.equal(model.head.weight, backbone.state["head.weight"])
    assert load_backbone(SMALL.build(0), backbone).left_aside == ("head.bias", "head.weight")
    with pytest.raises(FileError, match='has no head; load it with head="skip"'):
        load_backbone(SMALL.build(3), find_backbone(small_timm(0).state_dict()))
    half = {key: tensor for key, tensor in fill(small_timm(3)).state_dict().items() if key != "head.bias"}
    with pytest.raises(FileError, match=r"is for another model: it lacks head.bias; build the one that it is for \(in"):
        load_backbone(SMALL.build(3), find_backbone(half))


def test_batches_need_not_be_counted(fill):
    """As in files of before PyTorch 0.4.1."""
    expected = fill(SMALL.build(7))
    state = {key: tensor for key, tensor in expected.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert len(state) < len(expected.state_dict())
    model = SMALL.build(7).eval()
    load_backbone(model, find_backbone(state))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), expected.eval()(images))


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda x: x.to(torch.complex64), lambda x: x.to("meta")])
def test_weights_that_are_no_plain_numbers_are_refused(fill, change):
    state = fill(SMALL.build(7)).state_dict()
    state["head.weight"] = change(state["head.weight"])
    with pytest.raises(FileError, match=r"holds head.weight in a form that is not plain numbers; save it"):
        load_backbone(SMALL.build(7), find_backbone(state))


def test_nothing_may_be_left_over(fill):
    state = small_timm(7).state_dict()
    model = fill(SMALL.build(7))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FileError, match=r"it lacks blocks.1.feed_forward_scale; build the one"):
        load_backbone(model, find_backbone({k: v for k, v in state.items() if k != "blocks.1.gamma2"}))
    with pytest.raises(FileError, match=r"the model has no place for its blocks.0.extra; build the one"):
        load_backbone(model, find_backbone(state | {"blocks.0.extra": torch.zeros(1)}))
    with pytest.raises(FileError, match=r"class_token is \[1, 1, 128\] there and \[1, 1, 32\] in the model"):
        load_backbone(model, find_backbone(timm_xcit(depth=2, embed_dim=128, num_classes=7).state_dict()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_foreign_networks_are_refused():
    with pytest.raises(FileError, match=r"holds no backbone in a known layout .* its keys are features.0.0.weight, "):
        find_backbone(torchvision.models.mobilenet_v2().state_dict())
