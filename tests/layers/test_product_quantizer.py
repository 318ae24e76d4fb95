"""The quantizer against loops in float64, its gradients against the definition, its revival."""

import math

import pytest
import torch

from vitrail.layers.product_quantizer import ProductQuantizer, centroid_shares, draw_kept, keep_parts, perplexity


def quantizer(width=6, parts=3, centroids=7, part_width=4, **options) -> ProductQuantizer:
    torch.manual_seed(0)
    return ProductQuantizer(width, parts, centroids, part_width, **options)


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def oracle(module: ProductQuantizer, tokens: torch.Tensor) -> tuple[list, list, float]:
    """Indices, vectors and loss of tokens [N, d], in loops."""
    weight, bias = module.projection.weight.tolist(), module.projection.bias.tolist()
    width = module.part_width
    indices, vectors, squares = [], [], 0.0
    for token in tokens.tolist():
        projected = [
            sum(w * t for w, t in zip(row, token, strict=True)) + b for row, b in zip(weight, bias, strict=True)
        ]
        indices.append([])
        vectors.append([])
        for part, codebook in enumerate(module.codebook.tolist()):
            own = unit(projected[part * width : (part + 1) * width])
            centroids = [unit(centroid) for centroid in codebook]
            distances = [sum((a - b) ** 2 for a, b in zip(own, centroid, strict=True)) for centroid in centroids]
            nearest = distances.index(min(distances))
            indices[-1].append(nearest)
            vectors[-1].append(centroids[nearest])
            squares += min(distances)
    return indices, vectors, squares / (len(tokens) * module.parts * width)


@pytest.mark.parametrize(("parts", "centroids"), [(3, 7), (1, 40), (6, 2)])
def test_against_loops_in_float64(parts, centroids):
    module = quantizer(parts=parts, centroids=centroids).double()
    module.codebook.data *= torch.linspace(0.5, 2, centroids)[None, :, None]  # only directions count
    tokens = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    made = module(tokens)
    indices, vectors, distance = oracle(module, tokens.flatten(0, 2))
    assert made.indices.flatten(0, 2).tolist() == indices
    torch.testing.assert_close(made.vectors.flatten(0, 2), torch.tensor(vectors, dtype=torch.float64))
    # Embedding and commitment loss have the same value; the second counts a quarter.
    assert made.loss.item() == pytest.approx(1.25 * distance, rel=1e-12)


def test_what_leaves_in_training_is_exactly_what_decoding_looks_up():
    module = quantizer()
    tokens = torch.randn(2, 4, 4, 6)
    made = module(tokens)
    assert torch.equal(made.vectors, module.lookup(made.indices))
    assert torch.equal(made.indices, module.nearest(module.project(tokens)))


def test_long_inputs_are_searched_in_pieces():
    module = quantizer(parts=2)
    vectors = module.project(torch.randn(8200, 6))
    pieces = torch.cat([module.nearest(vectors[:5000]), module.nearest(vectors[5000:])])
    assert torch.equal(module.nearest(vectors), pieces)


def test_the_gradient_goes_straight_through_to_the_unit_vectors():
    module = quantizer().double()
    tokens = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 3, 4, dtype=torch.float64)
    (module(tokens).vectors * upstream).sum().backward()
    through = tokens.grad.clone()
    tokens.grad = None
    assert module.codebook.grad is None
    (module.project(tokens) * upstream).sum().backward()
    assert torch.equal(through, tokens.grad)


def test_the_embedding_loss_moves_centroids_and_the_commitment_loss_tokens():
    module = quantizer(commitment=0.5).double()
    tokens = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    module(tokens).loss.backward()
    expected = tokens.grad.clone(), module.codebook.grad.clone()
    tokens.grad = module.codebook.grad = None
    vectors, indices = module.project(tokens), module.nearest(module.project(tokens))
    (0.5 * (vectors - module.lookup(indices).detach()).square().mean()).backward()
    torch.testing.assert_close(expected[0], tokens.grad)
    (vectors.detach() - module.lookup(indices)).square().mean().backward()
    torch.testing.assert_close(expected[1], module.codebook.grad)


def test_the_first_parts_alone_are_the_first_parts_of_all():
    module = quantizer()
    indices = module(torch.randn(2, 4, 4, 6)).indices
    whole = module.lookup(indices)
    for quality in (1, 2, 3):
        kept = keep_parts(whole, torch.full((2,), quality))
        assert torch.equal(kept[..., :quality, :], module.lookup(indices[..., :quality]))
        assert kept[..., quality:, :].eq(0).all()


def test_each_sample_keeps_its_own_number_of_parts():
    vectors = torch.ones(3, 2, 2, 3, 4)
    kept = keep_parts(vectors, torch.tensor([1, 3, 2]))
    assert kept[:, 0, 0, :, 0].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    torch.manual_seed(1)
    drawn = draw_kept(4000, 3, torch.device("cpu")).bincount().tolist()
    assert drawn == pytest.approx([0, 1000, 1000, 2000], abs=100)
    assert draw_kept(2, 1, torch.device("cpu")).tolist() == [1, 1]


def test_usage_is_a_moving_average_of_shares_in_training_alone():
    module = quantizer(usage_decay=0.75)
    tokens = torch.randn(10, 6)
    indices = module(tokens).indices
    expected = torch.full((3, 7), 0.75 / 7)
    for part in range(3):
        for index in indices[:, part].tolist():
            expected[part, index] += 0.25 / 10
    torch.testing.assert_close(module.usage, expected)
    module.eval()(tokens)
    torch.testing.assert_close(module.usage, expected)


def test_shares_and_perplexity():
    shares = centroid_shares(torch.tensor([[0, 3], [1, 3], [0, 3], [1, 3]]), 4)
    assert shares.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 1]]
    assert perplexity(shares).tolist() == pytest.approx([2, 1])
    assert perplexity(torch.full((1, 256), 1 / 256)).item() == pytest.approx(256)


def test_dead_centroids_are_moved_beside_busy_ones_and_share_their_usage():
    module = quantizer(parts=1, centroids=6, dead_below=0.1)  # dead below 1/60
    module.usage.copy_(torch.tensor([[0.5, 0.3, 0.18, 0.009, 0.001, 0.01]]))
    before = module.unit_codebook().detach().clone()
    module.revive(step=3)
    after = module.unit_codebook().detach()
    assert torch.equal(after[0, :3], before[0, :3])  # nobody else moves
    # The least used goes to the most used, and so on.
    for dead, busy in ((4, 0), (3, 1), (5, 2)):
        assert torch.linalg.norm(after[0, dead] - before[0, busy]) < 0.06
        assert not torch.equal(after[0, dead], before[0, busy])
    assert module.usage[0].tolist() == pytest.approx([0.25, 0.15, 0.09, 0.15, 0.25, 0.09])


def test_a_dead_centroid_is_never_moved_to_another_dead_one():
    module = quantizer(parts=1, centroids=6)
    module.usage.copy_(torch.tensor([[0.99, 0.01, 0.0, 0.0, 0.0, 0.0]]))
    before = module.codebook.detach().clone()
    module.revive(step=0)
    moved = (module.codebook != before).any(dim=2)[0]
    assert moved.sum() == 1 and (module.usage[0] == 0.495).sum() == 2


def test_nothing_is_revived_where_all_are_used_or_revival_is_off():
    module = quantizer()
    before = module.codebook.detach().clone()
    module.revive(step=0)
    assert torch.equal(module.codebook, before)
    off = quantizer(dead_below=0.0)
    off.usage[:, 1:] = 0
    off.revive(step=0)
    assert torch.equal(off.codebook, before)


def test_revival_depends_on_the_step_and_not_on_global_randomness():
    results = []
    for seed, step in ((1, 5), (2, 5), (1, 6)):
        module = quantizer()
        module.usage[:, 3:] = 0
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        module.revive(step)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(module.codebook.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_revival_brings_a_collapsed_codebook_to_use():
    """All tokens lie in a narrow cone, which only a few of 32 random centroids are nearest to."""

    def trained(dead_below: float) -> float:
        module = quantizer(width=8, parts=1, centroids=32, part_width=8, dead_below=dead_below, usage_decay=0.9)
        torch.nn.init.eye_(module.projection.weight)
        torch.nn.init.zeros_(module.projection.bias)
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW([module.codebook], lr=3e-3, weight_decay=0.0)
        for step in range(150):
            tokens = torch.eye(8)[0] + 0.1 * torch.randn(256, 8, generator=generator)
            optimizer.zero_grad()
            module(tokens).loss.backward()
            optimizer.step()
            module.revive(step)
        return perplexity(module.usage).item()

    assert trained(0.0) < 10 < 20 < trained(0.1)
