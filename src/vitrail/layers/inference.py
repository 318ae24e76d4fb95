"""The layers of XCiT as inference needs them: constants folded, nothing stored that is not needed, no gradients.

Each layer is made from its plain twin (under torch.no_grad) and computes its residual branch, which `add_branch` adds
to the tokens: in place, and some tokens at a time. Weights are plain buffers, so that a model of these layers moves
between devices and types, and is saved, like any other. On the CPU in float32, convolutions and large products go
through oneDNN with the activation fused; all else, and everything under torch.compile, through PyTorch's operators.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.attention import CrossCovarianceAttention
from vitrail.layers.blocks import ClassAttentionBlock, FeedForward, LocalPatchInteraction
from vitrail.layers.patches import ConvolutionalPatches

# oneDNN's fused operators are not part of PyTorch's public interface: without them the plain path is taken.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")
)
_EPSILON = 1e-12  # of torch.nn.functional.normalize
_FLOAT32_COST = 5  # of a multiplication, beside one of half the bits: on a CPU, 4096 tokens took equally long


def _fused(x: Tensor) -> bool:
    """Whether oneDNN's fused operators take this tensor."""
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def _fused_product(x: Tensor) -> bool:
    """Whether oneDNN multiplies these tokens [..., i] by weights [o, i].

    In torch 2.11 it has an older kernel for small products, by the rule below, and for weights stored as [i, o]. That
    one keeps a heap address in the stack pointer, so that a signal, as Ctrl-C is, overwrites memory
    (https://github.com/uxlfoundation/oneDNN/issues/4845; mended in torch 2.15). PyTorch's own is as fast there.
    """
    width = x.shape[-1]
    return _fused(x) and x.numel() > 49152 and (width > 128 or x.numel() > 768 * width)


def _tokens_at_once(x: Tensor, on_cpu: int = 1024, elsewhere: int = 2**15) -> int:
    """Tokens that are worked on together: on the CPU what stays in its caches, elsewhere what keeps a device busy for
    longer than it takes to tell it what to do next."""
    return on_cpu if x.device.type == "cpu" and not torch.compiler.is_compiling() else elsewhere


def _in_parts(x: Tensor, tokens: int, at_once: int) -> Sequence[Tensor]:
    """x [n, ...], which holds so many tokens, in parts of nearly the same length along its first dimension."""
    return x.tensor_split(max(1, min(len(x), -(-tokens // at_once))))


def add_branch(tokens: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens [n, ..., d] plus what `branch` makes of them; the given ones are overwritten, a part after the other.

    Under torch.compile they are not: it fuses the sum with what follows, and an update in place of a part would be a
    copy of all.
    """
    if torch.compiler.is_compiling():
        return tokens + branch(tokens)
    for part in _in_parts(tokens, tokens.shape[:-1].numel(), _tokens_at_once(tokens)):
        part += branch(part)
    return tokens


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., i] by weight [o, i], contiguous, plus bias [o] -> [..., o]."""
    if _fused_product(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of [..., i] by weight [o, i], contiguous, plus bias [o] -> [..., o]."""
    if _fused_product(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return _gelu_(F.linear(x, weight, bias))


def linear_per_image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, n, i] by a weight for each image [B, o, i], contiguous, plus bias [B, o] -> [B, n, o]."""
    if _fused(x):
        biases = [None] * len(x) if bias is None else bias
        images = [linear(*image) for image in zip(x, weight, biases, strict=True)]
        return torch.stack(images) if len(images) > 1 else images[0][None]  # without a copy
    return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def convolve_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, int], groups: int
) -> Tensor:
    """GELU of the convolution of [B, i, h, w], channels last."""
    if _fused(x):
        arguments = (list(padding), [stride, stride], [1, 1], groups)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *arguments, "gelu", [], "none")
    return _gelu_(F.conv2d(x, weight, bias, stride, padding, groups=groups))


def _gelu_(x: Tensor) -> Tensor:
    """GELU in place."""
    return torch.ops.aten.gelu_(x)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The depth-wise 3x3 convolution of [B, d, h, w], channels last, with [d, 1, 3, 3] and bias [d], zeros around.

    PyTorch convolves float64 on the CPU channel by channel, many times slower than nine shifted products.
    """
    if x.device.type != "cpu" or x.dtype != torch.float64:
        return F.conv2d(x, weight, bias, padding=1, groups=len(weight))
    picture, taps = x.permute(0, 2, 3, 1), weight.flatten(1).T.contiguous()
    out = picture.new_empty(picture.shape).copy_(bias)
    height, width = picture.shape[1:3]
    rows_at_once = max(1, _tokens_at_once(x) // width)
    for top in range(0, height, rows_at_once):
        for down in (-1, 0, 1):
            first, last = max(top, -down), min(top + rows_at_once, height, height - down)
            for across in (-1, 0, 1):
                begin, end = max(0, -across), min(width, width - across)
                source = picture[:, first + down : last + down, begin + across : end + across]
                if first < last:
                    out[:, first:last, begin:end].addcmul_(source, taps[3 * down + across + 4])
    return out.permute(0, 3, 1, 2)


def centered_gram(x: Tensor, mean: Tensor) -> Tensor:
    """[B, N, d] and m [B, 1, d] -> (X - m)^T (X - m) [B, d, d], summed and kept in float32 where x has fewer bits."""
    if _fused(x):
        centered = x.new_empty(x.shape[2], x.shape[1])  # the way round in which oneDNN wants it
        pairs = zip(x.mT, mean.mT, strict=True)
        return torch.stack([linear(torch.sub(*pair, out=centered), centered) for pair in pairs])
    x = x - mean
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(x.mT, x, out_dtype=torch.float32)
    x = _at_least_float32(x)
    return x.mT @ x


def channel_norms_(x: Tensor) -> Tensor:
    """[B, N, d] -> the Euclidean norms over N, [B, d], in float32 at least; x is not kept."""
    if x.device.type == "cpu":  # where vector_norm takes six times as long along this dimension
        return _at_least_float32(x).square_().sum(dim=1).sqrt()
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.promote_types(x.dtype, torch.float32))


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
        self.output_weight = nn.Buffer(_scaled(attention.projection.weight, scale))
        self.output_bias = nn.Buffer(_scaled(attention.projection.bias, scale))
        temperature = attention.temperature
        self.temperature = None if temperature is None else nn.Buffer(temperature.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, d] -> the branch, [B, N, d]."""
        x, (count, width) = self.norm(tokens), tokens.shape[1:]
        if count <= width:
            query_key, value = linear(x, self.weight, self.bias).split([2 * width, width], dim=2)
            weights = self._weights(*self._compare(query_key))
            mixed = torch.einsum("bhij, bnhj -> bnhi", weights, value.unflatten(2, (self.heads, -1)))
            return linear(mixed.flatten(2), self.output_weight, self.output_bias)
        if (crossover := self.covariance_from) is None:
            crossover = covariance_crossover(width, self.heads, tokens.dtype)
        if count < crossover:
            compared = self._compare(linear(x, self.weight[: 2 * width], self.bias[: 2 * width]))
        else:
            compared = self._from_covariance(x)
        return linear_per_image(x, *self._from_tokens_to_output(self._weights(*compared)))

    def _from_tokens_to_output(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As of `_weights` -> values, attention and output projection as one weight [B, d, d] and bias [B, d]."""
        value_weight, value_bias = self.weight.chunk(3)[2], self.bias.chunk(3)[2]
        output_weight = self.output_weight.unflatten(1, (self.heads, -1))
        mixing = torch.einsum("bhij, ohi -> bohj", weights, output_weight).flatten(2)  # from values
        return mixing @ value_weight, mixing @ value_bias + self.output_bias

    def _compare(self, query_key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, N, 2 d], not kept -> Q^T K per head [B, h, d/h, d/h], and their norms [B, 2 d]."""
        query, key = query_key.unflatten(2, (2, self.heads, -1)).unbind(2)  # [B, N, h, d/h]
        return torch.einsum("bnhi, bnhj -> bhij", query, key), channel_norms_(query_key)

    def _from_covariance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, in float32 at least, without queries and keys."""
        mean = x.mean(dim=1, keepdim=True)
        covariance = centered_gram(x, mean)
        weight, bias = self.weight[: 2 * x.shape[2]].to(covariance.dtype), self.bias[: 2 * x.shape[2]]
        half = linear_per_image(weight.expand(len(x), -1, -1), covariance)  # W_q^T C and W_k^T C, [B, 2 d, d]
        center = F.linear(mean.squeeze(1).to(weight), weight) + bias  # q and k of the mean, [B, 2 d]
        squares = (weight * half).sum(dim=2) + x.shape[1] * center.square()
        query_weight = weight.unflatten(0, (2, self.heads, -1))[0]  # [h, d/h, d]
        half_key = half.unflatten(1, (2, self.heads, -1))[:, 1]  # [B, h, d/h, d]
        query, key = center.unflatten(1, (2, self.heads, -1)).unbind(1)  # [B, h, d/h]
        inner = torch.einsum("hid, bhjd -> bhij", query_weight, half_key)
        return inner + x.shape[1] * query[..., None] * key[..., None, :], squares.clamp(min=0).sqrt()

    def _weights(self, inner: Tensor, norms: Tensor) -> Tensor:
        """Q^T K and the norms -> what each channel takes from each of its head, [B, h, d/h, d/h]."""
        if self.normalize:
            query, key = norms.clamp(min=_EPSILON).unflatten(1, (2, self.heads, -1)).unbind(1)
            inner = inner / query[..., None] / key[..., None, :]
        if self.temperature is not None:
            inner = inner * self.temperature
        return inner.softmax(dim=-1).to(self.output_weight.dtype)


def covariance_crossover(width: int, heads: int, dtype: torch.dtype) -> int:
    """Tokens from which on the covariance form takes less time, by its multiplications.

    N (1 + 1/h) d^2 of the tokens are saved for (2 + 1/h) d^3, which in bfloat16 and float16 are float32.
    """
    cost = _FLOAT32_COST if dtype in (torch.bfloat16, torch.float16) else 1
    return int(width * cost * (2 + 1 / heads) / (1 + 1 / heads)) + 1


class InferenceLocalInteraction(nn.Module):
    """LPI with its batch norm as one multiply-add in place, and LayerScale folded into the second convolution.

    The batch norm stands before the zero padding of that convolution: its shift is missing outside the picture, and
    so cannot be folded into a bias.
    """

    def __init__(self, local: LocalPatchInteraction, norm: nn.LayerNorm, scale: Tensor) -> None:
        super().__init__()
        self.norm = norm
        assert local.convolution1.bias is not None and local.convolution2.bias is not None
        like = local.convolution1.weight
        factor, shift = fold_batch_norm(local.norm)
        self.weight1 = nn.Buffer(like.clone())
        self.bias1 = nn.Buffer(local.convolution1.bias.clone())
        self.factor = nn.Buffer(factor.to(like))
        self.shift = nn.Buffer(shift.to(like))
        self.weight2 = nn.Buffer(_scaled(local.convolution2.weight, scale))
        self.bias2 = nn.Buffer(_scaled(local.convolution2.bias, scale))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, h * w, d] of a grid (h, w) -> the branch, [B, h * w, d]."""
        inside = self._first_convolution(self.norm(tokens).unflatten(1, grid).permute(0, 3, 1, 2))
        channels_last = inside.permute(0, 2, 3, 1)
        torch.addcmul(self.shift, channels_last, self.factor, out=channels_last)
        return depthwise(inside, self.weight2, self.bias2).permute(0, 2, 3, 1).flatten(1, 2)

    def _first_convolution(self, picture: Tensor) -> Tensor:
        if _fused(picture):
            return convolve_gelu(picture, self.weight1, self.bias1, 1, (1, 1), len(self.weight1))
        return _gelu_(depthwise(picture, self.weight1, self.bias1))


class InferenceFeedForward(nn.Module):
    """The feed-forward branch with LayerScale folded into its second layer."""

    def __init__(self, feed_forward: FeedForward, scale: Tensor) -> None:
        super().__init__()
        self.weight1 = nn.Buffer(feed_forward.expand.weight.clone())
        self.bias1 = nn.Buffer(feed_forward.expand.bias.clone())
        self.weight2 = nn.Buffer(_scaled(feed_forward.contract.weight, scale))
        self.bias2 = nn.Buffer(_scaled(feed_forward.contract.bias, scale))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> the branch, [..., d]."""
        return linear(linear_gelu(x, self.weight1, self.bias1), self.weight2, self.bias2)


class InferencePatches(nn.Module):
    """Convolutional patches with their batch norms folded, a band of a picture at a time."""

    def __init__(self, patches: ConvolutionalPatches) -> None:
        super().__init__()
        stages = [_FoldedConvolution(*stage) for stage in patches if isinstance(stage, nn.Sequential)]
        self.width = len(stages[-1].bias)
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> tokens [B, h, w, d]."""
        heights = [images.shape[2]]
        for _ in self.stages:
            heights.append(-(-heights[-1] // 2))
        height, width = heights[-1], -(-images.shape[3] // 2 ** len(self.stages))
        at_once = _tokens_at_once(images, 512, 2**13)  # whose pixels hold several times as much as tokens do
        rows = max(1, at_once // width)
        tokens = images.new_empty(len(images), height, width, self.width)
        parts = (_in_parts(tensor, len(images) * height * width, at_once) for tensor in (images, tokens))
        for some, out in zip(*parts, strict=True):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                out[:, top:bottom] = self._band(some, heights, top, bottom).permute(0, 2, 3, 1)
        return tokens

    def _band(self, images: Tensor, heights: list[int], top: int, bottom: int) -> Tensor:
        """The rows [top, bottom) of the grid, as if the whole picture had been there: [B, d, rows, w]."""
        spans = [(top, bottom)]  # the rows of each stage that the next one needs, the padding included
        for _ in self.stages:
            spans.insert(0, (2 * spans[0][0] - 1, 2 * spans[0][1]))
        x = images[:, :, max(spans[0][0], 0) : spans[0][1]].contiguous(memory_format=torch.channels_last)
        for stage, (first, last), height in zip(self.stages, spans[:-1], heights[:-1], strict=True):
            if first >= 0 and height < last:  # padding below alone
                x = F.pad(x, (0, 0, 0, 1))
            x = stage(x, padding=int(first < 0), activate=stage is not self.stages[-1])
        return x


class _FoldedConvolution(nn.Module):
    """A 3x3 convolution of stride 2 with the batch norm after it."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        factor, shift = fold_batch_norm(norm)
        weight = (convolution.weight * factor[:, None, None, None]).to(convolution.weight)
        self.weight = nn.Buffer(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Buffer(shift.to(weight))

    def forward(self, x: Tensor, padding: int, activate: bool) -> Tensor:
        """`padding` rows of zeros above and below, of which an even number of rows needs the upper alone."""
        if activate:
            return convolve_gelu(x, self.weight, self.bias, 2, (padding, 1), 1)
        return F.conv2d(x, self.weight, self.bias, 2, (padding, 1))


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
        self.heads = attention.heads
        self.query, self.projection = attention.query, attention.projection
        key, value = attention.key_value.weight.chunk(2)
        self.key_weight = nn.Buffer(key.unflatten(0, (self.heads, -1)).clone())  # [h, d/h, d]
        self.value_weight = nn.Buffer(value.unflatten(0, (self.heads, -1)).mT.contiguous())  # [h, d, d/h]
        self.value_bias = nn.Buffer(attention.key_value.bias.chunk(2)[1].clone())
        self.attention_scale = nn.Buffer(block.attention_scale.clone())
        self.feed_forward = InferenceFeedForward(block.feed_forward, block.feed_forward_scale)

    def forward(self, class_token: Tensor, patches: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Class token [B, 1, d] and patches [B, N, d] -> both leaving the block, patches unchanged in the last."""
        normed_class, normed = self.attention_norm(class_token), self.attention_norm(patches)
        class_token = class_token + self.attention_scale * self._gather(normed_class, normed)
        class_token = self.feed_forward_norm(class_token)
        class_token = class_token + self.feed_forward(class_token)
        if not last:
            normed.mul_(self.attention_scale).add_(patches)
            patches = (self.feed_forward_norm(normed) if self.normalize_patches else normed).mul_(2)
        return class_token, patches

    def _gather(self, class_token: Tensor, patches: Tensor) -> Tensor:
        query = self.query(class_token).unflatten(2, (self.heads, -1)).squeeze(1) * self.key_weight.shape[1] ** -0.5
        query = torch.einsum("bhe, hed -> bhd", query, self.key_weight)
        scores = torch.cat([query @ class_token.mT, query @ patches.mT], dim=2).softmax(dim=2)  # [B, h, 1 + N]
        mixed = scores[:, :, :1] * class_token + scores[:, :, 1:] @ patches  # [B, h, d]
        values = torch.einsum("bhd, hde -> bhe", mixed, self.value_weight).flatten(1) + self.value_bias
        return self.projection(values[:, None])


def _at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 where it has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """A weight [o, ...] or bias [o] times LayerScale [o], contiguous."""
    return (tensor.double() * scale.double().view(-1, *[1] * (tensor.ndim - 1))).to(tensor)


def fold_batch_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as factor and shift, [d] each, float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, (norm.bias.double() - norm.running_mean.double() * factor)
