"""XCiT: official sizes, the ablations of Table 3.8, and the order of its parts."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from vitrail.backbones.xcit import XCITS, XCiTConfig
from vitrail.layers.blocks import ClassAttentionBlock

Build = Callable[..., nn.Module]
TINY = XCiTConfig(width=32, depth=2, heads=2, patch_size=8)
IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(6))

OFFICIAL_PARAMETERS = {
    "nano_12": (3_053_224, 3_049_016),
    "tiny_12": (6_716_272, 6_706_504),
    "tiny_24": (12_116_896, 12_107_128),
    "small_12": (26_253_304, 26_213_032),
    "small_24": (47_671_384, 47_631_112),
    "medium_24": (84_395_752, 84_323_624),
    "large_24": (189_096_136, 188_932_648),
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_all_fourteen_variants_have_the_official_number_of_parameters() -> None:
    with torch.device("meta"):
        built = {name: parameters(config.build(1000)) for name, config in XCITS.items()}
    expected = {
        f"xcit_{size}_p{patch_size}": count
        for size, counts in OFFICIAL_PARAMETERS.items()
        for patch_size, count in zip((16, 8), counts, strict=True)
    }
    assert built == expected


def keys_without(config: XCiTConfig) -> set[str]:
    """Keys that the baseline has and this configuration has not."""
    return set(TINY.build(5).state_dict()) - set(config.build(5).state_dict())


def test_table_3_8_without_local_interaction() -> None:
    gone = keys_without(replace(TINY, local_interaction=False))
    assert {key.split(".", 2)[2].split(".")[0] for key in gone} == {"local_norm", "local", "local_scale"}


def test_table_3_8_without_cross_covariance_attention() -> None:
    gone = keys_without(replace(TINY, cross_covariance=False))
    assert {key.split(".")[0] for key in gone} == {"blocks"}
    assert {key.split(".")[2] for key in gone} == {"attention_norm", "attention", "attention_scale"}


def test_table_3_8_without_learned_temperature(build: Build) -> None:
    assert keys_without(replace(TINY, learned_temperature=False)) == {
        f"blocks.{number}.attention.temperature" for number in (0, 1)
    }
    baseline, fixed = build(TINY, 5), replace(TINY, learned_temperature=False).build(5).eval()
    fixed.load_state_dict(baseline.state_dict(), strict=False)
    assert not torch.allclose(baseline(IMAGES), fixed(IMAGES))
    for block in baseline.blocks:
        block.attention.temperature.data.fill_(1.0)
    torch.testing.assert_close(baseline(IMAGES), fixed(IMAGES))


def test_table_3_8_without_normalisation_changes_the_function_alone(build: Build) -> None:
    baseline, raw = build(TINY, 5), replace(TINY, normalize=False).build(5).eval()
    raw.load_state_dict(baseline.state_dict())
    assert not torch.allclose(baseline(IMAGES), raw(IMAGES))


def test_table_3_8_with_linear_patches() -> None:
    model = replace(TINY, patch_projection="linear").build(5)
    assert model.patches.weight.shape == (32, 3, 8, 8)
    assert parameters(model) - parameters(model.patches) == parameters(TINY.build(5)) - parameters(
        TINY.build(5).patches
    )


def test_the_parts_in_their_order(build: Build) -> None:
    model = build(TINY, 5)
    features = model.forward_features(IMAGES, layers=(0, 1))
    picture = model.patches(IMAGES)
    assert features.grid == tuple(picture.shape[2:]) == (3, 4)
    tokens = (picture + model.positions(3, 4)).flatten(2).mT
    tokens = model.blocks[0](tokens, (3, 4))
    torch.testing.assert_close(features.layers[0], tokens)
    tokens = model.blocks[1](tokens, (3, 4))
    torch.testing.assert_close(features.layers[1], tokens)
    torch.testing.assert_close(features.patches, tokens)
    tokens = torch.cat([model.class_token.expand(2, -1, -1), tokens], dim=1)
    for block in model.class_blocks:
        assert isinstance(block, ClassAttentionBlock)
        tokens = block(tokens)
    torch.testing.assert_close(features.class_token, model.norm(tokens)[:, 0])
    torch.testing.assert_close(model(IMAGES), model.head(model.norm(tokens)[:, 0]))


def test_positions_make_the_order_of_patches_matter(build: Build) -> None:
    model = build(replace(TINY, patch_projection="linear", local_interaction=False), 5)
    flipped = IMAGES.unflatten(3, (4, 8)).flip(3).flatten(3)  # patches in another order, each as it was
    assert not torch.allclose(model(IMAGES), model(flipped))
    nn.init.zeros_(model.positions.projection.weight)
    torch.testing.assert_close(model(IMAGES), model(flipped), rtol=1e-4, atol=1e-5)


def test_without_class_attention_the_mean_of_the_patches_stands_for_the_image(build: Build) -> None:
    model = build(replace(TINY, class_depth=0), 5)
    features = model.forward_features(IMAGES)
    torch.testing.assert_close(features.class_token, features.patches.mean(dim=1))
    assert not any(key.startswith(("class_token", "class_blocks", "norm")) for key in model.state_dict())


def test_stochastic_depth_is_the_same_in_every_block() -> None:
    model = replace(TINY, drop_path=0.3).build()
    assert [block.drop_path.rate for block in model.blocks] == [0.3, 0.3]


def test_fresh_weights() -> None:
    model = replace(TINY, layer_scale=1e-5, width=128).build(50)
    assert 0.018 < model.head.weight.std() < 0.022
    assert not model.head.bias.any()
    assert 0.015 < model.class_token.std() < 0.025
    assert torch.equal(model.class_blocks[0].attention_scale, torch.full((128,), 1e-5))
