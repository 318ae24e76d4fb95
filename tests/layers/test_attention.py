"""Attention against the equations, written out in loops, float64."""

import math

import pytest
import torch
from torch import Tensor

from vitrail.layers.attention import ClassAttention, CrossCovarianceAttention, SelfAttention, attend

BATCH, TOKENS, WIDTH, HEADS = 2, 5, 12, 3
CHANNELS = WIDTH // HEADS


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def parts(layer: torch.nn.Linear, sample: Tensor, number: int, head: int) -> list[list[float]]:
    """Queries (0), keys (1) or values (2) of one head, [N][d/h], by the rows of the joint matrix that make them."""
    rows = slice(number * WIDTH + head * CHANNELS, number * WIDTH + (head + 1) * CHANNELS)
    return (sample @ layer.weight[rows].T + layer.bias[rows]).tolist()


def test_self_attention_is_its_equation(tokens: Tensor) -> None:
    attention = SelfAttention(WIDTH, HEADS).double()
    expected = torch.zeros_like(tokens)
    for b in range(BATCH):
        for head in range(HEADS):
            query, key, value = (parts(attention.query_key_value, tokens[b], n, head) for n in range(3))
            for i in range(TOKENS):
                weights = softmax(
                    [
                        sum(q * k for q, k in zip(query[i], key[j], strict=True)) / math.sqrt(CHANNELS)
                        for j in range(TOKENS)
                    ]
                )
                for c in range(CHANNELS):
                    expected[b, i, head * CHANNELS + c] = sum(weights[j] * value[j][c] for j in range(TOKENS))
    torch.testing.assert_close(attention(tokens), attention.projection(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [7, 1030])
def test_attention_in_bfloat16_is_within_its_rounding_of_that_in_float64(count: int) -> None:
    """On both sides of where torch's kernel takes over; gradients too."""
    draw = torch.Generator().manual_seed(0)
    rough = [torch.randn(2, 3, count, 8, generator=draw).bfloat16().requires_grad_() for _ in range(3)]
    exact = [part.detach().double().requires_grad_() for part in rough]
    upstream = torch.randn(2, 3, count, 8, generator=draw).bfloat16()
    mixed = attend(*rough)
    expected = ((exact[0] @ exact[1].mT) / math.sqrt(8)).softmax(dim=3) @ exact[2]
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), expected, rtol=0.02, atol=0.02)
    mixed.backward(upstream)
    expected.backward(upstream.double())
    for ours, theirs in zip(rough, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.03, atol=0.03)


def test_self_attention_does_not_care_where_tokens_stand(tokens: Tensor) -> None:
    attention = SelfAttention(WIDTH, HEADS).double()
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(attention(tokens[:, order], (2, 2), 1), attention(tokens)[:, order])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_causal_attention_and_an_extra_key_and_value_are_those_of_torch(
    tokens: Tensor, causal: bool, extra: bool
) -> None:
    """nn.MultiheadAttention puts the extra ones last, which makes no difference."""
    attention = SelfAttention(WIDTH, HEADS, causal, extra).double()
    oracle = torch.nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=extra, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(attention.query_key_value.weight)
        oracle.in_proj_bias.copy_(attention.query_key_value.bias)
        oracle.out_proj.load_state_dict(attention.projection.state_dict())
        if extra:
            for ours, theirs in ((attention.extra_key, oracle.bias_k), (attention.extra_value, oracle.bias_v)):
                ours.normal_(generator=torch.Generator().manual_seed(2))
                theirs.copy_(ours.view(1, 1, -1))
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1) if causal else None  # True: not seen
    expected = oracle(tokens, tokens, tokens, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-12, atol=1e-12)


def test_plain_attention_has_the_keys_it_had() -> None:
    assert sorted(SelfAttention(WIDTH, HEADS).state_dict()) == [
        "projection.bias",
        "projection.weight",
        "query_key_value.bias",
        "query_key_value.weight",
    ]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("learned_temperature", [True, False])
def test_cross_covariance_attention_is_equation_3_1(tokens: Tensor, normalize: bool, learned_temperature: bool) -> None:
    attention = CrossCovarianceAttention(WIDTH, HEADS, normalize, learned_temperature).double()
    temperatures = [1.0] * HEADS
    if learned_temperature:
        temperatures = [0.5, 2.0, 7.0]
        attention.temperature.data.copy_(torch.tensor(temperatures).view(HEADS, 1, 1))
    expected = torch.zeros_like(tokens)
    for b in range(BATCH):
        for head in range(HEADS):
            query, key, value = (parts(attention.query_key_value, tokens[b], n, head) for n in range(3))
            for i in range(CHANNELS):  # query channel i: a column of Softmax(K^T Q), over key channels j
                scores = []
                for j in range(CHANNELS):
                    product = sum(key[n][j] * query[n][i] for n in range(TOKENS))
                    if normalize:
                        product /= math.sqrt(sum(key[n][j] ** 2 for n in range(TOKENS)))
                        product /= math.sqrt(sum(query[n][i] ** 2 for n in range(TOKENS)))
                    scores.append(product * temperatures[head])
                weights = softmax(scores)
                for n in range(TOKENS):
                    expected[b, n, head * CHANNELS + i] = sum(value[n][j] * weights[j] for j in range(CHANNELS))
    torch.testing.assert_close(attention(tokens), attention.projection(expected), rtol=1e-12, atol=1e-12)


def test_cross_covariance_attention_does_not_see_the_scale_of_queries_and_keys(tokens: Tensor) -> None:
    attention = CrossCovarianceAttention(WIDTH, HEADS).double()
    before = attention(tokens)
    with torch.no_grad():
        attention.query_key_value.weight[: 2 * WIDTH] *= 3
        attention.query_key_value.bias[: 2 * WIDTH] *= 3
    torch.testing.assert_close(attention(tokens), before)


def test_class_attention_is_its_equation(tokens: Tensor) -> None:
    attention = ClassAttention(WIDTH, HEADS).double()
    all_weights = attention.weights(tokens)
    expected = torch.zeros(BATCH, 1, WIDTH, dtype=torch.float64)
    for b in range(BATCH):
        for head in range(HEADS):
            rows = slice(head * CHANNELS, (head + 1) * CHANNELS)
            query = (tokens[b, 0] @ attention.query.weight[rows].T + attention.query.bias[rows]).tolist()
            key, value = (parts(attention.key_value, tokens[b], n, head) for n in range(2))
            weights = softmax(
                [sum(q * k for q, k in zip(query, key[j], strict=True)) / math.sqrt(CHANNELS) for j in range(TOKENS)]
            )
            torch.testing.assert_close(all_weights[b, head], torch.tensor(weights, dtype=torch.float64))
            for c in range(CHANNELS):
                expected[b, 0, head * CHANNELS + c] = sum(weights[j] * value[j][c] for j in range(TOKENS))
    torch.testing.assert_close(attention(tokens), attention.projection(expected), rtol=1e-12, atol=1e-12)
