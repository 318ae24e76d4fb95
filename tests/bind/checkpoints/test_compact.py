"""Matrices in fewer bits: exact arithmetic on what is stored, and how far that is from float32."""

import pytest
import torch
from torch import nn

from vitrail.bind.checkpoints.compact import CompactEmbedding, CompactLinear, compact, stored_weights
from vitrail.bind.encoder import text_encoder
from vitrail.bind.modality import Modality


class Small(Modality):
    name = "small"


def test_int8_rows_are_the_nearest_of_255_levels():
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.5, -1.27, 0.004], [0.0, 0.0, 0.0]]))
        linear.bias.copy_(torch.tensor([1.0, 2.0]))
    layer = CompactLinear(linear, "int8")
    assert layer.weight.tolist() == [[50, -127, 0], [0, 0, 0]]
    torch.testing.assert_close(layer.scale, torch.tensor([0.01, 1.0]))
    inputs = torch.tensor([[1.0, 1.0, 1.0]])
    torch.testing.assert_close(layer(inputs), torch.tensor([[1 + 0.5 - 1.27, 2.0]]))


@pytest.mark.parametrize(("weights", "step"), [("int8", 0.5 / 127), ("bfloat16", 2**-8)])
def test_no_weight_is_off_by_more_than_half_a_step(weights, step):
    table = nn.Embedding(50, 16)
    rows = CompactEmbedding(table, weights)(torch.arange(50))
    assert rows.dtype == torch.float32
    largest = table.weight.abs().amax(dim=1, keepdim=True)
    assert ((rows - table.weight).abs() <= step * largest * 1.001).all()
    linear = nn.Linear(16, 8, bias=False)
    matrix = CompactLinear(linear, weights)(torch.eye(16)).T
    assert ((matrix - linear.weight).abs() <= step * linear.weight.abs().amax(dim=1, keepdim=True) * 1.001).all()


@pytest.mark.parametrize(("weights", "tolerance", "share"), [("int8", 1e-3, 0.3), ("bfloat16", 5e-5, 0.52)])
def test_encoder_stays_close_and_shrinks(weights, tolerance, share):
    """1 - cosine with the vectors of float32; memory as a share of float32's."""
    torch.manual_seed(0)
    encoder = text_encoder(Small(width=64, depth=4, heads=4), 32, vocabulary=500, length=20).eval()
    ids = torch.randint(1, 500, (16, 20))
    before = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    with torch.inference_mode():
        expected = encoder(ids)
        compact(encoder, weights)
        distance = 1 - nn.functional.cosine_similarity(encoder(ids), expected)
    assert 0 < distance.max() < tolerance
    assert sum(tensor.nbytes for tensor in encoder.state_dict().values()) < share * before
    assert stored_weights(encoder) == weights
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in encoder.modules())


def test_other_tensors_are_copied_so_that_the_file_can_go():
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    before = module[0].weight.data_ptr()
    compact(module, "int8")
    assert module[0].weight.data_ptr() != before
    assert stored_weights(nn.Linear(2, 2)) == "float32"
