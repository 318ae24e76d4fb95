"""Table 3.3's attentions against their equations, token by token, float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import VitrailError
from vitrail.layers.attention import SelfAttention
from vitrail.layers.efficient_attention import (
    AxialAttention,
    EfficientAttention,
    LinformerAttention,
    RowAttention,
    SpatialReductionAttention,
)

WIDTH, HEADS, CHANNELS = 12, 3, 4
Grid = tuple[int, int]


def random_tokens(grid: Grid, leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, leading + grid[0] * grid[1], WIDTH, dtype=torch.float64, generator=generator)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query [d], keys and values [n, d] -> [d], head by head."""
    mixed = []
    for head in range(HEADS):
        channels = slice(head * CHANNELS, (head + 1) * CHANNELS)
        weights = torch.exp(key[:, channels] @ query[channels] / math.sqrt(CHANNELS))
        mixed.append(weights @ value[:, channels] / weights.sum())
    return torch.cat(mixed)


@pytest.mark.parametrize("leading", [0, 1, 2])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("pooling", ["average", "convolutional"])
def test_spatial_reduction_attention_is_its_equation(pooling: str, grid: Grid, leading: int) -> None:
    attention = SpatialReductionAttention(WIDTH, HEADS, 2, pooling).double()
    tokens = random_tokens(grid, leading)
    expected = torch.zeros_like(tokens)
    for b, sample in enumerate(tokens):
        sources = list(sample[:leading])
        picture = sample[leading:].view(*grid, WIDTH)
        for top in range(0, grid[0], 2):
            for left in range(0, grid[1], 2):
                window = picture[top : top + 2, left : left + 2]
                if pooling == "average":
                    sources.append(window.mean(dim=(0, 1)))
                    continue
                reduced = attention.pool.bias
                for y in range(window.shape[0]):
                    for x in range(window.shape[1]):
                        reduced = reduced + attention.pool.weight[:, :, y, x] @ window[y, x]
                centred = reduced - reduced.mean()
                reduced = centred / torch.sqrt((centred**2).mean() + 1e-5)
                sources.append(reduced)
        key, value = attention.key_value(torch.stack(sources)).split(WIDTH, dim=1)
        for i, query in enumerate(attention.query(sample)):
            expected[b, i] = attend(query, key, value)
    torch.testing.assert_close(attention(tokens, grid, leading), attention.projection(expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pooling", ["average", "convolutional"])
def test_spatial_reduction_by_one_is_full_attention(pooling: str) -> None:
    full = SelfAttention(WIDTH, HEADS).double()
    attention = SpatialReductionAttention(WIDTH, HEADS, 1, pooling).double()
    for name in ("weight", "bias"):
        joint = getattr(full.query_key_value, name).data
        getattr(attention.query, name).data.copy_(joint[:WIDTH])
        getattr(attention.key_value, name).data.copy_(joint[WIDTH:])
    attention.projection.load_state_dict(full.projection.state_dict())
    tokens = random_tokens((3, 4), 1)
    torch.testing.assert_close(attention(tokens, (3, 4), 1), full(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("leading", [0, 2])
def test_linformer_is_its_equation(leading: int) -> None:
    attention = LinformerAttention(WIDTH, HEADS, length=12).double()
    assert attention.key_compression.shape == (3, 12)  # the square root of 12, rounded
    tokens = random_tokens((3, 4), leading)
    expected = torch.zeros_like(tokens)
    for b, sample in enumerate(tokens):
        query, key, value = attention.query_key_value(sample).split(WIDTH, dim=1)
        compressed_key, compressed_value = list(key[:leading]), list(value[:leading])
        for i in range(3):
            weights = zip(attention.key_compression[i], key[leading:], strict=True)
            compressed_key.append(sum(weight * k for weight, k in weights))
            weights = zip(attention.value_compression[i], value[leading:], strict=True)
            compressed_value.append(sum(weight * v for weight, v in weights))
        for i in range(len(sample)):
            expected[b, i] = attend(query[i], torch.stack(compressed_key), torch.stack(compressed_value))
    torch.testing.assert_close(attention(tokens, None, leading), attention.projection(expected), rtol=1e-11, atol=1e-11)


def test_linformer_with_nothing_compressed_is_full_attention() -> None:
    attention, full = LinformerAttention(WIDTH, HEADS, 12, 12).double(), SelfAttention(WIDTH, HEADS).double()
    for compression in (attention.key_compression, attention.value_compression):
        compression.data = torch.eye(12, dtype=torch.float64)
    full.load_state_dict(attention.state_dict(), strict=False)
    tokens = random_tokens((3, 4), 1)
    torch.testing.assert_close(attention(tokens, None, 1), full(tokens), rtol=1e-12, atol=1e-12)


def test_linformer_refuses_another_number_of_patches() -> None:
    attention = LinformerAttention(WIDTH, HEADS, length=12).double()
    with pytest.raises(VitrailError, match="built for 12 patches and cannot take 13"):
        attention(random_tokens((1, 13), 1), (1, 13), 1)


def test_efficient_attention_is_its_equation() -> None:
    attention = EfficientAttention(WIDTH, HEADS).double()
    tokens = random_tokens((3, 4), 1)
    expected = torch.zeros_like(tokens)
    for b, sample in enumerate(tokens):
        query, key, value = attention.query_key_value(sample).split(WIDTH, dim=1)
        for head in range(HEADS):
            start = head * CHANNELS
            for i in range(len(sample)):
                rho_query = torch.exp(query[i, start : start + CHANNELS])
                rho_query = rho_query / rho_query.sum()
                for c in range(CHANNELS):
                    rho_key = torch.exp(key[:, start + c]) / torch.exp(key[:, start + c]).sum()
                    context = rho_key @ value[:, start : start + CHANNELS]
                    expected[b, i, start : start + CHANNELS] += rho_query[c] * context
    torch.testing.assert_close(attention(tokens, (3, 4), 1), attention.projection(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("leading", [0, 1, 2])
@pytest.mark.parametrize("columns", [False, True])
def test_row_attention_is_its_equation(columns: bool, leading: int) -> None:
    attention = RowAttention(WIDTH, HEADS).double()
    grid = (3, 4)
    tokens = random_tokens(grid, leading)
    places = [None] * leading + [(y, x)[columns] for y in range(grid[0]) for x in range(grid[1])]
    expected = torch.zeros_like(tokens)
    for b, sample in enumerate(tokens):
        query, key, value = attention.query_key_value(sample).split(WIDTH, dim=1)
        for i, place in enumerate(places):
            seen = [j for j, other in enumerate(places) if place is None or other is None or other == place]
            expected[b, i] = attend(query[i], key[seen], value[seen])
    mixed = attention(tokens, grid, leading, columns)
    torch.testing.assert_close(mixed, attention.projection(expected), rtol=1e-12, atol=1e-12)


def test_row_attention_in_a_single_row_is_full_attention() -> None:
    attention, full = RowAttention(WIDTH, HEADS).double(), SelfAttention(WIDTH, HEADS).double()
    full.load_state_dict(attention.state_dict())
    tokens = random_tokens((1, 6), 1)
    torch.testing.assert_close(attention(tokens, (1, 6), 1), full(tokens), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attention(tokens, (6, 1), 1, columns=True), full(tokens), rtol=1e-12, atol=1e-12)


def test_axial_attention_is_rows_then_columns_as_residual_layers() -> None:
    attention = AxialAttention(WIDTH, HEADS).double()
    tokens = random_tokens((3, 4), 1)
    rows = tokens + attention.rows(tokens, (3, 4), 1)
    both = rows + attention.columns(rows, (3, 4), 1, columns=True)
    torch.testing.assert_close(tokens + attention(tokens, (3, 4), 1), both)
    far = tokens.clone()
    far[:, -1] += 1  # the last patch reaches the first through its row and then its column
    assert not torch.allclose(attention(far, (3, 4), 1)[:, 1], attention(tokens, (3, 4), 1)[:, 1])


@pytest.mark.parametrize("attention", [SpatialReductionAttention(WIDTH, HEADS, 2), AxialAttention(WIDTH, HEADS)])
def test_a_subset_of_the_patches_has_no_grid(attention: nn.Module) -> None:
    with pytest.raises(ValueError, match="not a subset"):
        attention(torch.zeros(1, 5, WIDTH), None, 1)


@pytest.mark.parametrize(
    ("attention", "scores"),
    [
        (SelfAttention(WIDTH, HEADS), 64 * 64),
        (SpatialReductionAttention(WIDTH, HEADS, 4), 64 * 64 // 16),
        (SpatialReductionAttention(WIDTH, HEADS, 4, "convolutional"), 64 * 64 // 16),
        (LinformerAttention(WIDTH, HEADS, 64), 64 * 8),
        (EfficientAttention(WIDTH, HEADS), 0),
        (AxialAttention(WIDTH, HEADS), 64 * (8 + 8)),
    ],
)
def test_as_many_scores_as_table_3_3_says(monkeypatch: pytest.MonkeyPatch, attention: nn.Module, scores: int) -> None:
    counted = 0
    original = F.scaled_dot_product_attention

    def count(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        nonlocal counted
        counted += math.prod(query.shape[:-1]) * key.shape[-2] // HEADS
        return original(query, key, value, mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", count)
    assert attention(torch.randn(1, 64, WIDTH), (8, 8), 0).shape == (1, 64, WIDTH)
    assert counted == scores
