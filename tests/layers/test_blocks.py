"""Blocks against what they are made of, put together by hand."""

import math
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from vitrail.layers.attention import SelfAttention
from vitrail.layers.blocks import (
    ClassAttentionBlock,
    FeedForward,
    LocalPatchInteraction,
    StochasticDepth,
    TransformerBlock,
    XCiTBlock,
)

WIDTH, HEADS, GRID = 8, 2, (3, 4)

Module = TypeVar("Module", bound=nn.Module)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 12, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def randomized(module: Module) -> Module:
    """With every parameter and running mean away from its first value, in float64, evaluating."""
    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.1
    return module.eval()


def test_stochastic_depth_drops_whole_samples_and_scales_up_the_others() -> None:
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    dropped = StochasticDepth(0.2)(branch)
    first = dropped[:, 0, 0]
    assert torch.equal(dropped, first[:, None, None].expand_as(branch))
    assert set(first.tolist()) == {0.0, 1.25}
    assert 0.17 < (first == 0).double().mean() < 0.23  # five deviations of the binomial


def test_stochastic_depth_does_nothing_in_evaluation_or_at_rate_zero() -> None:
    branch = torch.randn(8, 2)
    assert StochasticDepth(0.9).eval()(branch) is branch
    assert StochasticDepth(0.0)(branch) is branch


def test_stochastic_depth_keeps_the_type() -> None:
    assert StochasticDepth(0.5)(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_feed_forward_is_two_layers_with_the_exact_gelu(tokens: Tensor) -> None:
    feed_forward = randomized(FeedForward(WIDTH))
    hidden = tokens @ feed_forward.expand.weight.T + feed_forward.expand.bias
    assert hidden.shape[-1] == 4 * WIDTH
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = hidden @ feed_forward.contract.weight.T + feed_forward.contract.bias
    torch.testing.assert_close(feed_forward(tokens), expected, rtol=1e-12, atol=1e-12)


def test_local_patch_interaction_is_two_depthwise_convolutions(tokens: Tensor) -> None:
    local = randomized(LocalPatchInteraction(WIDTH))
    height, width = GRID

    def convolve(picture: Tensor, convolution: nn.Conv2d) -> Tensor:
        out = torch.zeros_like(picture)
        for y in range(height):
            for x in range(width):
                total = convolution.bias
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            total = total + convolution.weight[:, 0, 1 + dy, 1 + dx] * picture[:, y + dy, x + dx]
                out[:, y, x] = total
        return out

    picture = convolve(tokens.view(2, height, width, WIDTH), local.convolution1)
    picture = picture * (1 + torch.erf(picture / math.sqrt(2))) / 2
    norm = local.norm
    picture = (picture - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
    expected = convolve(picture, local.convolution2).flatten(1, 2)
    torch.testing.assert_close(local(tokens, GRID), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_transformer_block_is_two_residual_branches(tokens: Tensor, layer_scale: float | None) -> None:
    block = randomized(TransformerBlock(WIDTH, SelfAttention(WIDTH, HEADS), layer_scale))
    scales = (1.0, 1.0) if layer_scale is None else (block.attention_scale, block.feed_forward_scale)
    mixed = tokens + scales[0] * block.attention(block.attention_norm(tokens))
    expected = mixed + scales[1] * block.feed_forward(block.feed_forward_norm(mixed))
    torch.testing.assert_close(block(tokens), expected)
    assert ("attention_scale" in block.state_dict()) is (layer_scale is not None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_a_transformer_block_for_one_token_of_each_sample(tokens: Tensor, causal: bool, extra: bool) -> None:
    block = randomized(TransformerBlock(tokens.shape[2], SelfAttention(tokens.shape[2], 2, causal, extra), 0.3))
    only = torch.arange(len(tokens)) % tokens.shape[1] + 1
    expected = torch.stack([sample[number] for sample, number in zip(block(tokens), only, strict=True)])
    found = block(tokens, only=only)
    assert found.shape == (len(tokens), 1, tokens.shape[2])
    torch.testing.assert_close(found[:, 0], expected)


def test_xcit_block_is_attention_then_local_interaction_then_feed_forward(tokens: Tensor) -> None:
    block = randomized(XCiTBlock(WIDTH, HEADS))
    expected = tokens + block.attention_scale * block.attention(block.attention_norm(tokens))
    expected = expected + block.local_scale * block.local(block.local_norm(expected), GRID)
    expected = expected + block.feed_forward_scale * block.feed_forward(block.feed_forward_norm(expected))
    torch.testing.assert_close(block(tokens, GRID), expected)


def test_xcit_block_without_its_branches_is_a_feed_forward_block(tokens: Tensor) -> None:
    block = randomized(XCiTBlock(WIDTH, HEADS, cross_covariance=False, local_interaction=False))
    expected = tokens + block.feed_forward_scale * block.feed_forward(block.feed_forward_norm(tokens))
    torch.testing.assert_close(block(tokens, GRID), expected)
    assert {name.split(".")[0] for name in block.state_dict()} == {
        "feed_forward_norm",
        "feed_forward",
        "feed_forward_scale",
    }


def test_layer_scale_starts_at_its_value() -> None:
    block = XCiTBlock(WIDTH, HEADS, layer_scale=1e-5)
    for scale in (block.attention_scale, block.local_scale, block.feed_forward_scale):
        assert torch.equal(scale, torch.full((WIDTH,), 1e-5))


@pytest.mark.parametrize("normalize_patches", [True, False])
def test_class_attention_block_as_the_official_models_compute_it(tokens: Tensor, normalize_patches: bool) -> None:
    block = randomized(ClassAttentionBlock(WIDTH, HEADS, 1.0, normalize_patches))
    normed = block.attention_norm(tokens)
    class_token = tokens[:, :1] + block.attention_scale * block.attention(normed)
    patches = tokens[:, 1:] + block.attention_scale * normed[:, 1:]
    class_token = block.feed_forward_norm(class_token)
    class_token = class_token + block.feed_forward_scale * block.feed_forward(class_token)
    patches = 2 * (block.feed_forward_norm(patches) if normalize_patches else patches)
    torch.testing.assert_close(block(tokens), torch.cat([class_token, patches], dim=1))
