"""XCiT's two attentions for inference: few multiplications, and under torch.compile few kernels and copies."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import CrossCovarianceAttention
from vitrail.layers.blocks import ClassAttentionBlock
from vitrail.layers.inference import InferenceFeedForward, fused, linear, scaled

_EPSILON = 1e-12  # of torch.nn.functional.normalize
# Of a float32 multiplication, beside one of half the bits. On a CPU both forms took equally long at 4096 tokens; for
# CUDA it is what the data sheets of NVIDIA's A100 and H100 say.
_FLOAT32_COST, _FLOAT32_COST_ON_CUDA = 5, 16


class InferenceAttention(nn.Module):
    """XCA in forms that compute the same; the number of tokens decides which.

    Few tokens: queries, keys and values are computed, about 4 N d^2 multiplications. More tokens than channels: the
    values' projection, the attention and the output projection are one d x d matrix per image, about N d^2 + d^3
    multiplications instead of 2 N d^2.

    Many tokens, the *covariance form*: with C = (X - m)^T (X - m), the covariance of the tokens times N, and q, k the
    queries and keys of the mean token m, Q^T K = W_q^T C W_k + N q k^T head by head, and the squared norms of the
    channels are the diagonals of W_q^T C W_q + N q q^T and of W_k^T C W_k + N k k^T. So queries and keys never exist
    either: about N d^2 + 2 d^3 multiplications instead of 2 N d^2.
    Taking the mean out first keeps the squares from cancelling against biases or against a common part of the tokens;
    what remains is that a channel of relative size below 3e-4 of what W and X would allow has a norm of few digits.

    Args:
        attention, norm, scale: of the plain block.
        covariance_from: tokens, more than d, from which on the covariance form is used; None: where it saves time.
    """

    def __init__(
        self, attention: CrossCovarianceAttention, norm: nn.LayerNorm, scale: Tensor, covariance_from: int | None
    ) -> None:
        super().__init__()
        self.heads = attention.heads
        self.normalize = attention.normalize
        self.covariance_from = covariance_from
        self.norm = norm
        self.weight = nn.Buffer(attention.query_key_value.weight.clone())  # of queries, keys and values, [3 d, d]
        self.bias = nn.Buffer(attention.query_key_value.bias.clone())
        self.output_weight = nn.Buffer(scaled(attention.projection.weight, scale))
        self.output_bias = nn.Buffer(scaled(attention.projection.bias, scale))
        temperature = attention.temperature
        self.temperature = None if temperature is None else nn.Buffer(temperature.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, d] -> the branch, [B, N, d]."""
        x, (count, width) = self.norm(tokens), tokens.shape[1:]
        if count <= width:
            weights, (_, _, value) = self._weights_and_parts(linear(x, self.weight, self.bias))
            mixed = (weights @ value.mT).flatten(1, 2)  # [B, d, N]
            return linear(mixed.mT, self.output_weight, self.output_bias)
        if (crossover := self.covariance_from) is None:
            crossover = covariance_crossover(width, self.heads, tokens.dtype, tokens.device)
        if count < crossover:
            weights, _ = self._weights_and_parts(linear(x, self.weight[: 2 * width], self.bias[: 2 * width]))
        else:
            weights = self._weights(*self._compare_from_covariance(x))
        return linear_per_image(x, *self._from_tokens_to_output(weights))

    def _weights_and_parts(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and perhaps values [B, N, p d] -> as of `_weights`, and [p, B, h, N, d/h], of which queries and
        keys are not kept.

        Products of heads need a copy. Under torch.compile it divides queries and keys by their norms on the way; else
        it is less work to divide their product.
        """
        parts = projected.unflatten(2, (-1, self.heads, len(self.output_bias) // self.heads)).permute(2, 0, 3, 1, 4)
        in_copy = self.normalize and torch.compiler.is_compiling()
        if in_copy:
            norms = torch.linalg.vector_norm(parts, dim=3, keepdim=True, dtype=_sum_dtype(parts)).clamp(min=_EPSILON)
            is_value = torch.arange(len(parts), device=parts.device).view(-1, 1, 1, 1, 1) > 1
            parts = (parts / norms.masked_fill(is_value, 1)).to(parts.dtype)
        parts = parts.contiguous()
        inner = parts[0].mT @ parts[1]
        return self._weights(inner, channel_norms_(parts[:2]) if self.normalize and not in_copy else None), parts

    def _compare_from_covariance(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, N, d] -> what `_weights` takes, in float32 at least, without queries and keys."""
        mean = x.mean(dim=1, keepdim=True)
        covariance = centered_gram(x, mean)
        weight, bias = self.weight[: 2 * x.shape[2]].to(covariance.dtype), self.bias[: 2 * x.shape[2]]
        half = linear_per_image(weight.expand(len(x), -1, -1), covariance)  # W_q^T C and W_k^T C, [B, 2 d, d]
        center = F.linear(mean.squeeze(1).to(weight), weight) + bias  # q and k of the mean, [B, 2 d]
        query_weight = weight.unflatten(0, (2, self.heads, -1))[0]  # [h, d/h, d]
        half_key = half.unflatten(1, (2, self.heads, -1))[:, 1]  # [B, h, d/h, d]
        query, key = center.unflatten(1, (2, self.heads, -1)).unbind(1)  # [B, h, d/h]
        inner = torch.einsum("hid, bhjd -> bhij", query_weight, half_key)
        inner = inner + x.shape[1] * query[..., None] * key[..., None, :]
        if not self.normalize:
            return inner, None
        squares = (weight * half).sum(dim=2) + x.shape[1] * center.square()
        return inner, squares.clamp(min=0).sqrt().unflatten(1, (2, self.heads, -1)).transpose(0, 1)

    def _weights(self, inner: Tensor, norms: Tensor | None) -> Tensor:
        """Q^T K by head [B, h, d/h, d/h], and the norms to divide it by, if any, [2, B, h, d/h] -> what each channel
        takes from each of its head, [B, h, d/h, d/h]."""
        if norms is not None:
            query, key = norms.clamp(min=_EPSILON)
            inner = inner / query[..., None] / key[..., None, :]
        if self.temperature is not None:
            inner = inner * self.temperature
        return inner.softmax(dim=-1).to(self.output_weight.dtype)

    def _from_tokens_to_output(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As of `_weights` -> values, attention and output projection as one weight [B, d, d] and bias [B, d]."""
        value_weight = self.weight.unflatten(0, (3, self.heads, -1))[2]  # [h, d/h, d]
        value_bias = self.bias.unflatten(0, (3, self.heads, 1, -1))[2]  # [h, 1, d/h]
        mixed_weight = torch.einsum("bhij, hjd -> bhid", weights, value_weight).flatten(1, 2)
        mixed_bias = (weights * value_bias).sum(dim=3).flatten(1)
        return self.output_weight @ mixed_weight, F.linear(mixed_bias, self.output_weight, self.output_bias)


def covariance_crossover(width: int, heads: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens from which on the covariance form takes less time, by its multiplications.

    N (1 + 1/h) d^2 of the tokens are saved for (2 + 1/h) d^3, which in bfloat16 and float16 are float32.
    """
    cost = 1
    if dtype in (torch.bfloat16, torch.float16):
        cost = _FLOAT32_COST_ON_CUDA if device.type == "cuda" else _FLOAT32_COST
    return int(width * cost * (2 + 1 / heads) / (1 + 1 / heads)) + 1


class InferenceClassAttention(nn.Module):
    """A class attention block that computes what the class token needs, and the patches only where a block follows.

    With a single query, keys and values need not exist: q . (W_k x + b) = (W_k^T q) . x + a constant that the softmax
    ignores, and sum_n a_n (W_v x_n + b) = W_v (sum_n a_n x_n) + b. So 2 N d h multiplications instead of 2 N d^2.
    """

    def __init__(self, block: ClassAttentionBlock) -> None:
        super().__init__()
        self.normalize_patches = block.normalize_patches
        self.attention_norm, self.feed_forward_norm = block.attention_norm, block.feed_forward_norm
        attention = block.attention
        self.query = attention.query
        key, value = attention.key_value.weight.unflatten(0, (2, attention.heads, -1))  # [h, d/h, d] each
        self.key_weight = nn.Buffer(key * key.shape[1] ** -0.5)
        self.value_weight = nn.Buffer(value.mT.contiguous())  # [h, d, d/h]
        self.output_weight = nn.Buffer(scaled(attention.projection.weight, block.attention_scale))
        output_bias = attention.projection(attention.key_value.bias.chunk(2)[1])  # weights of attention sum to 1
        self.output_bias = nn.Buffer(scaled(output_bias, block.attention_scale))
        self.attention_scale = nn.Buffer(block.attention_scale.clone())
        self.feed_forward = InferenceFeedForward(block.feed_forward, block.feed_forward_scale)

    def forward(self, tokens: Tensor, last: bool) -> Tensor:
        """Class token and patches [B, 1 + N, d] -> leaving the block; in the last, the class token alone [B, 1, d]."""
        normed = self.attention_norm(tokens)
        class_token = self.feed_forward_norm(tokens[:, :1] + self._gather(normed))
        class_token = class_token + self.feed_forward(class_token)
        if last:
            return class_token
        tokens = normed.mul_(self.attention_scale).add_(tokens)
        tokens = (self.feed_forward_norm(tokens) if self.normalize_patches else tokens).mul_(2)
        tokens[:, :1] = class_token
        return tokens

    def _gather(self, tokens: Tensor) -> Tensor:
        """[B, 1 + N, d] -> the branch of the class token, [B, 1, d]."""
        query = self.query(tokens[:, 0]).unflatten(1, (len(self.key_weight), -1))
        query = torch.einsum("bhe, hed -> bhd", query, self.key_weight)
        mixed = (query @ tokens.mT).softmax(dim=2) @ tokens  # [B, h, d]
        values = torch.einsum("bhd, hde -> bhe", mixed, self.value_weight).flatten(1)
        return F.linear(values, self.output_weight, self.output_bias)[:, None]


def linear_per_image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, n, i] by a weight for each image [B, o, i], contiguous, plus bias [B, o] -> [B, n, o]."""
    if fused(x):
        biases = [None] * len(x) if bias is None else bias
        images = [linear(*image) for image in zip(x, weight, biases, strict=True)]
        return torch.stack(images) if len(images) > 1 else images[0][None]  # without a copy
    x = x @ weight.mT
    return x if bias is None else x + bias[:, None]


def centered_gram(x: Tensor, mean: Tensor) -> Tensor:
    """[B, N, d] and m [B, 1, d] -> (X - m)^T (X - m) [B, d, d], summed and kept in float32 where x has fewer bits."""
    if fused(x):
        centered = x.new_empty(x.shape[2], x.shape[1])  # the way round in which oneDNN wants it
        pairs = zip(x.mT, mean.mT, strict=True)
        return torch.stack([linear(torch.sub(*pair, out=centered), centered) for pair in pairs])
    x = x - mean
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(x.mT, x, out_dtype=torch.float32)
    x = x.to(_sum_dtype(x))
    return x.mT @ x


def channel_norms_(x: Tensor) -> Tensor:
    """[..., N, d] -> the Euclidean norms over N, [..., d], in float32 at least; x is not kept."""
    if x.device.type == "cpu":  # where vector_norm takes six times as long along this dimension
        return x.to(_sum_dtype(x)).square_().sum(dim=-2).sqrt()
    return torch.linalg.vector_norm(x, dim=-2, dtype=_sum_dtype(x))


def _sum_dtype(x: Tensor) -> torch.dtype:
    """In which to sum over tokens: float32 where x has fewer bits."""
    return torch.promote_types(x.dtype, torch.float32)
