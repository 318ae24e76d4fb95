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

from vitrail.layers.blocks import FeedForward, LocalPatchInteraction
from vitrail.layers.patches import ConvolutionalPatches

# oneDNN's fused operators are not part of PyTorch's public interface: without them the plain path is taken.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")
)


def fused(x: Tensor) -> bool:
    """Whether oneDNN's fused operators take this tensor; under autocast other tensors may have another type."""
    float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    eager = not torch.compiler.is_compiling()
    return _HAS_ONEDNN and x.device.type == "cpu" and float32 and eager and x.numel() > 0


def _fused_product(x: Tensor) -> bool:
    """Whether oneDNN multiplies these tokens [..., i] by weights [o, i].

    In torch 2.11 it has an older kernel for small products, by the rule below, and for weights stored as [i, o]. That
    one keeps a heap address in the stack pointer, so that a signal, as Ctrl-C is, overwrites memory
    (https://github.com/uxlfoundation/oneDNN/issues/4845; mended in torch 2.15). PyTorch's own is as fast there.
    """
    width = x.shape[-1]
    return fused(x) and x.numel() > 49152 and (width > 128 or x.numel() > 768 * width)


def _tokens_at_once(x: Tensor, on_cpu: int = 1600, elsewhere: int = 2**15) -> int:
    """Tokens that are worked on together: on the CPU so few that little memory is taken, and so many that oneDNN, which
    rearranges the weights at each product, does that for enough of them; elsewhere what keeps a device busy for longer
    than it takes to tell it what to do next."""
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


def convolve_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, int], groups: int
) -> Tensor:
    """GELU of the convolution of [B, i, h, w], channels last."""
    if fused(x):
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
        self.weight2 = nn.Buffer(scaled(local.convolution2.weight, scale))
        self.bias2 = nn.Buffer(scaled(local.convolution2.bias, scale))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, h * w, d] of a grid (h, w) -> the branch, [B, h * w, d]."""
        inside = self._first_convolution(self.norm(tokens).unflatten(1, grid).permute(0, 3, 1, 2))
        channels_last = inside.permute(0, 2, 3, 1)
        torch.addcmul(self.shift, channels_last, self.factor, out=channels_last)
        return depthwise(inside, self.weight2, self.bias2).permute(0, 2, 3, 1).flatten(1, 2)

    def _first_convolution(self, picture: Tensor) -> Tensor:
        if fused(picture):
            return convolve_gelu(picture, self.weight1, self.bias1, 1, (1, 1), len(self.weight1))
        return _gelu_(depthwise(picture, self.weight1, self.bias1))


class InferenceFeedForward(nn.Module):
    """The feed-forward branch with LayerScale folded into its second layer."""

    def __init__(self, feed_forward: FeedForward, scale: Tensor) -> None:
        super().__init__()
        self.weight1 = nn.Buffer(feed_forward.expand.weight.clone())
        self.bias1 = nn.Buffer(feed_forward.expand.bias.clone())
        self.weight2 = nn.Buffer(scaled(feed_forward.contract.weight, scale))
        self.bias2 = nn.Buffer(scaled(feed_forward.contract.bias, scale))

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


def scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """A weight [o, ...] or bias [o] times LayerScale [o], contiguous."""
    return (tensor.double() * scale.double().view(-1, *[1] * (tensor.ndim - 1))).to(tensor)


def fold_batch_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as factor and shift, [d] each, float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, (norm.bias.double() - norm.running_mean.double() * factor)
