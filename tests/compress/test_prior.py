"""The masked image model sees what it may see, and its loss is what it costs to code."""

import math
from dataclasses import replace

import pytest
import torch

from vitrail.compress.prior import (
    PriorConfig,
    draw_stage,
    draw_uniform,
    index_costs,
    masked_cross_entropy,
)
from vitrail.compress.stages import quincunx
from vitrail.errors import VitrailError

CPU = torch.device("cpu")


def build(config: PriorConfig, parts=2, centroids=5, **fields):
    torch.manual_seed(0)
    model = replace(config, **fields).build(parts, centroids).eval()
    model.marginal.copy_(torch.rand(parts, centroids).softmax(dim=1))
    return model


@pytest.fixture
def indices():
    return torch.randint(0, 5, (3, 4, 6, 2), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("embedding", ["sum", "concatenation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_do_not_depend_on_hidden_indices(tiny_prior, indices, embedding, dtype):
    model = build(tiny_prior, embedding=embedding).to(dtype)
    known = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        logits = model(indices, known)
        assert logits.shape == (3, 4, 6, 2, 5) and logits.dtype == dtype
        others = torch.where(known[..., None], indices, (indices + 2) % 5)
        assert torch.equal(model(others, known), logits)
        seen = torch.where(known[..., None], (indices + 2) % 5, indices)
        assert (model(seen, known) != logits).any(dim=(1, 2, 3, 4)).all()


@pytest.mark.parametrize("embedding", ["sum", "concatenation"])
def test_fewer_parts_are_a_lower_quality(tiny_prior, indices, embedding):
    model = build(tiny_prior, parts=2, embedding=embedding)
    known = torch.rand(3, 4, 6) < 0.5
    with torch.no_grad():
        alone = model(indices[..., :1], known)
        assert alone.shape == (3, 4, 6, 1, 5)
        both = model(indices, known, kept=torch.tensor([1, 2, 1]))
        torch.testing.assert_close(both[[0, 2], :, :, :1], alone[[0, 2]])
        assert not torch.allclose(both[1, :, :, :1], alone[1])
        torch.testing.assert_close(both[1], model(indices, known)[1])


def test_in_float64_nothing_is_rounded_to_float32(tiny_prior, indices):
    """Else the last bits of all parameters could not matter; those of the positions are computed, not stored."""
    model = build(tiny_prior).double()
    known = torch.rand(3, 4, 6) < 0.5
    positions = model.trunk.positions(4, 6)
    assert positions.dtype == torch.float64
    weight = model.trunk.positions.projection.weight.detach()[:, :, 0, 0]
    encoding = []
    for channel in range(64):
        divisor = 10000 ** (2 * (channel % 32 // 2) / 32)
        angle = 2 * math.pi * ((3 if channel < 32 else 4) / ((4 if channel < 32 else 6) + 1e-6)) / divisor
        encoding.append(math.cos(angle) if channel % 2 else math.sin(angle))
    expected = weight @ torch.tensor(encoding, dtype=torch.float64) + model.trunk.positions.projection.bias
    torch.testing.assert_close(positions[0, :, 2, 3], expected, rtol=0, atol=1e-14)
    dtypes = set()
    for module in model.modules():
        module.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    model(indices, known)
    assert dtypes == {torch.float64}


def test_the_loss_is_the_cross_entropy_of_masked_tokens(indices):
    logits = torch.randn(3, 4, 6, 2, 5, dtype=torch.float64)
    known = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(3)) < 0.6
    kept = torch.tensor([2, 1, 2])
    for used in (None, kept):
        expected = []
        for sample in range(3):
            costs = [
                -math.log(logits[sample, y, x, part].softmax(0)[indices[sample, y, x, part]])
                for y in range(4)
                for x in range(6)
                for part in range(2 if used is None else int(used[sample]))
                if not known[sample, y, x]
            ]
            expected.append(sum(costs) / len(costs))
        made = masked_cross_entropy(logits, indices, known, used)
        assert made.loss.item() == pytest.approx(sum(expected) / 3, rel=1e-12)
        assert made.bits.item() == pytest.approx(sum(expected) / 3 / math.log(2), rel=1e-12)


def test_known_tokens_get_no_gradient(indices):
    logits = torch.randn(3, 4, 6, 2, 5, requires_grad=True)
    known = torch.rand(3, 4, 6) < 0.5
    masked_cross_entropy(logits, indices, known).loss.backward()
    assert logits.grad[known].eq(0).all() and logits.grad[~known].ne(0).all()


def test_stage_bits_are_the_costs_stage_by_stage(tiny_prior, indices):
    model = build(tiny_prior)
    stages = quincunx(4, 6, 4)
    bits = model.stage_bits(indices, stages)
    assert bits.shape == (3, 4) and bits.dtype == torch.float64
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for sample in range(3):
        for y in range(4):
            for x in range(6):
                stage = int(stages[y, x])
                with torch.no_grad():
                    logits = model(indices[sample : sample + 1], (stages < stage)[None])[0, y, x]
                for part in range(2):
                    index = indices[sample, y, x, part]
                    shares = model.marginal[part] if stage == 0 else logits[part].softmax(0)
                    expected[sample, stage] -= math.log2(shares[index])
    torch.testing.assert_close(bits, expected, rtol=1e-4, atol=1e-4)


def test_marginal_bits_are_finite_for_centroids_never_seen(tiny_prior):
    model = build(tiny_prior)
    model.marginal.copy_(torch.tensor([[1.0, 0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25, 0]]))
    bits = model.marginal_bits(torch.tensor([[0, 1], [1, 4]]))
    assert bits[0].tolist() == pytest.approx([0, 2], abs=1e-4)
    assert bits[1].tolist() == pytest.approx([math.log2(1e6)] * 2, abs=1e-2)


def test_the_marginal_follows_the_shares(tiny_prior):
    model = build(tiny_prior)
    model.marginal.fill_(0.2)
    model.observe(torch.tensor([[0, 4], [0, 3]]), decay=0.5)
    assert model.marginal.flatten().tolist() == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.35, 0.35])


def test_uniform_masks_hide_a_uniform_share():
    torch.manual_seed(0)
    known = draw_uniform(4000, (4, 5), CPU)
    assert known.shape == (4000, 4, 5)
    hidden = (~known).flatten(1).sum(dim=1)
    counts = hidden.bincount(minlength=21)
    assert counts[0] == 0 and hidden.max() == 20
    assert all(140 < count < 260 for count in counts[1:].tolist())  # 200 expected of each
    everywhere = (~known).float().mean(dim=0)
    assert everywhere.min() > 0.48 and everywhere.max() < 0.57  # 10.5 of 20 expected at each place


def test_stage_masks_know_all_stages_before_one():
    stages = quincunx(8, 8, 5)
    torch.manual_seed(0)
    known = draw_stage(400, stages, CPU)
    drawn = known.flatten(1).sum(dim=1)
    assert set(drawn.tolist()) == {4, 8, 16, 32}
    assert all(70 < (drawn == count).sum() < 130 for count in (4, 8, 16, 32))
    for mask in known:
        assert torch.equal(mask, stages < int(stages[~mask].min()))


def test_a_grid_of_one_stage_is_refused():
    with pytest.raises(VitrailError, match="leaves nothing to predict"):
        draw_stage(2, torch.zeros(1, 1, dtype=torch.int64), CPU)


def test_concatenation_needs_a_width_that_divides(tiny_prior):
    with pytest.raises(VitrailError, match="16 channels cannot be shared out among 3 concatenated embeddings"):
        build(tiny_prior, parts=3, embedding="concatenation")


def test_costs_have_the_shape_of_the_indices(indices):
    logits = torch.randn(3, 4, 6, 2, 5)
    expected = -logits.log_softmax(dim=4).gather(4, indices[..., None])[..., 0]
    torch.testing.assert_close(index_costs(logits, indices), expected)


@pytest.mark.parametrize("embedding", ["sum", "concatenation"])
@pytest.mark.parametrize("grid", [(1, 1), (4, 6), (25, 31)], ids=str)
def test_inference_computes_the_same(tiny_prior, embedding, grid):
    model = build(tiny_prior, embedding=embedding).double()
    fast = model.optimize_for_inference()
    indices = torch.randint(0, 5, (2, *grid, 2))
    known = torch.rand(2, *grid) < 0.4
    for given in (1, 2):
        context = fast.context(indices[..., :given], known)
        made = fast.logits(context, given)
        with torch.no_grad():
            expected = model(indices[..., :given], known)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-11)
        chosen = context.flatten(0, 2)[::3]
        torch.testing.assert_close(fast.logits(chosen, given), made.flatten(0, 2)[::3], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("depth", -1), ("heads", 0), ("drop_path", 1.0), ("embedding", "mean")]
)
def test_what_no_network_can_have_is_refused(field, value):
    with pytest.raises(VitrailError, match=rf"^PriorConfig.{field} is {value}; it must be "):
        PriorConfig(**{field: value})
