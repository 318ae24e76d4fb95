"""LoRA changes nothing at first, only what is thin is trained, and it can be merged."""

import pytest
import torch
from torch import nn

from vitrail.layers.attention import SelfAttention
from vitrail.layers.blocks import TransformerBlock
from vitrail.layers.low_rank import LowRankLinear, add_low_rank, load_beneath, merge_low_rank


def test_a_block_through_its_life():
    torch.manual_seed(0)
    block = TransformerBlock(16, SelfAttention(16, 2)).double()
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    before, keys = block(tokens), set(block.state_dict())
    add_low_rank(block, rank=3, scale=0.5)
    assert torch.equal(block(tokens), before)
    layers = ("attention.query_key_value", "attention.projection", "feed_forward.expand", "feed_forward.contract")
    thin = {f"{layer}.{part}" for layer in layers for part in ("down", "up")}
    assert set(block.state_dict()) == keys | thin
    assert {name for name, parameter in block.named_parameters() if parameter.requires_grad} == thin

    block(tokens).square().sum().backward()
    assert all(
        (parameter.grad is not None and bool(parameter.grad.any())) == name.endswith("up")  # down's is 0 as up is
        for name, parameter in block.named_parameters()
    )
    with torch.no_grad():
        for name in thin:
            block.get_parameter(name).normal_(std=0.1)
    changed = block(tokens)
    assert (changed - before).abs().max() > 0.01
    merge_low_rank(block)
    assert set(block.state_dict()) == keys
    torch.testing.assert_close(block(tokens), changed, rtol=1e-12, atol=1e-12)


def test_the_equation():
    linear = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    layer = LowRankLinear(linear, rank=2, scale=0.25)
    nn.init.normal_(layer.up)
    x = torch.randn(7, 4, dtype=torch.float64)
    expected = x @ (linear.weight + 0.25 * layer.up @ layer.down).mT
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert layer.down.shape == (2, 4) and layer.up.shape == (3, 2) and layer.merged().bias is None


def test_plain_weights_lie_beneath_the_changes():
    torch.manual_seed(0)
    plain, changed = (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)) for _ in range(2))
    add_low_rank(changed, rank=1)
    nn.init.normal_(changed[0].up)
    inputs = torch.randn(2, 4)
    change = inputs @ (changed[0].up @ changed[0].down).mT
    load_beneath(changed, plain.state_dict())
    torch.testing.assert_close(changed(inputs), plain[1](plain[0](inputs) + change))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1.bias\""):
        load_beneath(changed, {key: value for key, value in plain.state_dict().items() if key != "1.bias"})
