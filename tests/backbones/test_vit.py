"""ViT and DeiT against timm on the same weights, and what timm has not: subsets of the patches."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitrail.backbones.vit import VITS, ViT, ViTConfig
from vitrail.errors import VitrailError

Build = Callable[..., nn.Module]
TINY = ViTConfig(width=32, depth=3, heads=2, patch_size=8, image_size=32)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))

# In order: each pattern works on what the ones before it left.
NAMES = [
    (r"^patches\.", "patch_embed.proj."),
    (r"^positions\.table", "pos_embed"),
    (r"^class_token", "cls_token"),
    (r"^distillation_token", "dist_token"),
    (r"^head_distillation", "head_dist"),
    (r"attention_norm", "norm1"),
    (r"feed_forward_norm", "norm2"),
    (r"attention_scale", "ls1.gamma"),
    (r"feed_forward_scale", "ls2.gamma"),
    (r"attention\.query_key_value", "attn.qkv"),
    (r"attention\.projection", "attn.proj"),
    (r"feed_forward\.expand", "mlp.fc1"),
    (r"feed_forward\.contract", "mlp.fc2"),
]


def timms_name(name: str, mean: bool = False) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name.replace("norm.", "fc_norm.", 1) if mean and name.startswith("norm.") else name


def timms(model: ViT, kind: type[VisionTransformer] = VisionTransformer, **options: Any) -> VisionTransformer:
    """timm's model with the same weights, nothing left over."""
    config = model.config
    theirs = kind(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=model.num_classes,
        init_values=config.layer_scale,
        **options,
    )
    mean = config.pooling == "mean"
    theirs.load_state_dict({timms_name(name, mean): tensor for name, tensor in model.state_dict().items()})
    return theirs.eval()


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize(
    ("pooling", "class_token", "options"),
    [
        ("class_token", True, {}),
        ("mean", True, {"global_pool": "avg"}),
        ("mean", False, {"global_pool": "avg", "class_token": False}),
    ],
)
def test_same_logits_as_timm(
    build: Build, pooling: str, class_token: bool, options: dict[str, Any], layer_scale: float | None
) -> None:
    model = build(replace(TINY, pooling=pooling, class_token=class_token, layer_scale=layer_scale), 5)
    torch.testing.assert_close(model(IMAGES), timms(model, **options)(IMAGES), rtol=1e-5, atol=1e-5)


def test_same_features_as_timm(build: Build) -> None:
    model = build(TINY)
    features = model.forward_features(IMAGES, layers=(0, 2))
    theirs = timms(model)
    tokens = theirs.forward_features(IMAGES)
    torch.testing.assert_close(features.class_token, tokens[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.patches, tokens[:, 1:], rtol=1e-5, atol=1e-5)
    for ours, expected in zip(
        features.maps(), theirs.get_intermediate_layers(IMAGES, [0, 2], reshape=True), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_distilled_deit_answers_as_timms(build: Build) -> None:
    model = build(replace(TINY, distillation_token=True), 5)
    theirs = timms(model, VisionTransformerDistilled)
    torch.testing.assert_close(model(IMAGES), theirs(IMAGES), rtol=1e-5, atol=1e-5)
    theirs.set_distilled_training(True)
    expected = theirs.train()(IMAGES)
    ours = model.train().distilled_logits(IMAGES)
    for logits, expected_logits in zip(ours, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(*ours)
    torch.testing.assert_close(model(IMAGES), (ours[0] + ours[1]) / 2)
    features, tokens = model.forward_features(IMAGES), theirs.forward_features(IMAGES)
    torch.testing.assert_close(features.class_token, tokens[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.patches, tokens[:, 2:], rtol=1e-5, atol=1e-5)


def test_without_a_distillation_token_both_answers_are_one(build: Build) -> None:
    model = build(TINY, 5)
    labels, teacher = model.distilled_logits(IMAGES)
    assert torch.equal(labels, teacher)
    assert torch.equal(labels, model(IMAGES))


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (16, 24)])
@pytest.mark.parametrize("distilled", [False, True])
def test_other_image_sizes_as_timm_resizes_its_models(build: Build, size: tuple[int, int], distilled: bool) -> None:
    model = build(replace(TINY, distillation_token=distilled), 5)
    theirs = timms(model, VisionTransformerDistilled if distilled else VisionTransformer)
    images = torch.randn(2, 3, *size)
    theirs.set_input_size(img_size=size)
    torch.testing.assert_close(model(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_sizes_that_are_no_multiples_are_filled_up(build: Build) -> None:
    model = build(TINY, 5)
    images = torch.randn(2, 3, 27, 30)
    filled = nn.functional.pad(images, (0, 2, 0, 5))
    torch.testing.assert_close(model(images), model(filled))


def test_a_table_for_another_image_size_resamples_to_the_same_function(build: Build) -> None:
    small = build(TINY, 5)
    large = replace(TINY, image_size=64).build(5).eval()
    state = small.state_dict()
    state["positions.table"] = resample_abs_pos_embed(state["positions.table"], [8, 8], [4, 4])
    large.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(large(images), small(images))


@pytest.mark.parametrize("name", ["vit", "vit_mean", "vit_sinusoidal", "deit_distilled", "vit_efficient"])
def test_any_subset_of_the_patches(tiny: dict[str, ViTConfig], build: Build, name: str) -> None:
    model = build(tiny[name])
    whole = model.forward_features(IMAGES, layers=(1,))
    every = model.forward_features(IMAGES, layers=(1,), keep=torch.arange(16).expand(2, -1))
    for got, expected in zip((*every[:2], *every.layers), (*whole[:2], *whole.layers), strict=True):
        torch.testing.assert_close(got, expected)

    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    permuted = model.forward_features(IMAGES, layers=(1,), keep=order)
    torch.testing.assert_close(permuted.class_token, whole.class_token, rtol=1e-4, atol=1e-5)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(permuted.patches, whole.patches[rows, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted.layers[0], whole.layers[0][rows, order], rtol=1e-4, atol=1e-5)

    few = model.forward_features(IMAGES, layers=(1,), keep=order[:, :5])
    assert few.grid == (4, 4)
    assert few.patches.shape == (2, 5, 32)
    changed = IMAGES.clone()
    for sample, left_out in zip(changed, order[:, 5:], strict=True):
        for patch in left_out.tolist():
            row, column = divmod(patch, 4)
            sample[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 100.0
    again = model.forward_features(changed, layers=(1,), keep=order[:, :5])
    torch.testing.assert_close(few.class_token, again.class_token)  # what is left out is not seen
    torch.testing.assert_close(few.patches, again.patches)
    assert not torch.allclose(few.class_token, whole.class_token)


@pytest.mark.parametrize("name", ["vit_sra_average", "vit_sra_convolutional", "vit_linformer", "vit_axial"])
def test_attention_on_the_grid_refuses_subsets(tiny: dict[str, ViTConfig], name: str) -> None:
    with pytest.raises(VitrailError, match="needs all patches"):
        tiny[name].build().forward_features(IMAGES, keep=torch.zeros(2, 3, dtype=torch.int64))


def test_contradictions_are_refused() -> None:
    with pytest.raises(VitrailError, match="set pooling to mean"):
        ViTConfig(class_token=False).build()
    with pytest.raises(VitrailError, match="set pooling to class_token"):
        ViTConfig(distillation_token=True, pooling="mean").build()
    with pytest.raises(VitrailError, match="built for 16 patches and cannot take 20"):
        replace(TINY, attention="linformer").build()(torch.zeros(1, 3, 32, 40))


def test_stochastic_depth_rises_or_stays() -> None:
    rates = [block.drop_path.rate for block in replace(TINY, drop_path=0.2).build().blocks]
    assert rates == [0.0, 0.1, 0.2]
    constant = replace(TINY, drop_path=0.2, drop_path_schedule="constant").build()
    assert [block.drop_path.rate for block in constant.blocks] == [0.2, 0.2, 0.2]


@pytest.mark.parametrize("name", [name for name in VITS if "large" not in name and "huge" not in name])
def test_named_variants_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours = VITS[name].build(1000)
        theirs = timm.create_model(name, pretrained=False, weight_init="skip", num_classes=1000)
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {timms_name(key): tensor.shape for key, tensor in ours.state_dict().items()} == expected
    assert ours.config.heads == theirs.blocks[0].attn.num_heads
    assert ours.norm.eps == theirs.norm.eps


@pytest.mark.parametrize(
    ("name", "count"), [("vit_large_patch16_224", 304_326_632), ("vit_huge_patch14_224", 632_045_800)]
)
def test_large_variants_have_the_published_size(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in VITS[name].build(1000).parameters()) == count
