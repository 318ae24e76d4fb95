"""The encoders: a stem that makes tokens, a transformer, a head (Section 6.3.3).

All senses share the transformer; they differ in their stems. Sizes come from the sense's `Modality`.
"""

import torch
from torch import Tensor, nn

from vitrail.bind.modality import Modality
from vitrail.errors import VitrailError
from vitrail.layers.attention import SelfAttention
from vitrail.layers.blocks import TransformerBlock, quick_gelu
from vitrail.layers.positions import LearnedPositions


class Stem(nn.Module):
    """Prepared inputs to tokens, of which one stands for the input in the end: by default the first.

    Attributes:
        width: d.
        shapes: the inputs that it takes, in words.
    """

    width: int
    shapes: str

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether `shape` is one of a batch of inputs, [B, ...]."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, ...] -> [B, N, d]."""
        raise NotImplementedError

    def place(self, inputs: Tensor) -> Tensor:
        """The number of the token that stands for each input: [B, ...] -> [B] int64."""
        return torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)


class PatchStem(Stem):
    """Patches of pictures, of spectrograms, of a few frames; a class token, and learned positions.

    Positions are learned for one size and resampled bicubically for others. A picture given to a stem for several
    frames counts as so many frames that are all the same.

    Args:
        width: d.
        channels: C.
        kernel_size: pixels a side of a patch, P.
        stride: pixels from one patch to the next.
        size: (H, W) that the positions are learned for.
        frames: T, which make one patch together.
        norm: a LayerNorm after the projection.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        kernel_size: int,
        stride: int,
        size: tuple[int, int],
        frames: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.channels = channels
        self.frames = frames
        clips = f" or [B, {channels}, {frames}, H, W]" if frames > 1 else ""
        self.shapes = f"[B, {channels}, H, W]{clips} of at least {kernel_size} x {kernel_size}"
        # All frames fall into one patch, so that time is but more channels.
        self.patches = nn.Conv2d(channels * frames, width, kernel_size, stride, bias=False)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        grid = ((size[0] - kernel_size) // stride + 1, (size[1] - kernel_size) // stride + 1)
        self.positions = LearnedPositions(width, grid, leading=1, antialias=False)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """[B, C, H, W], and for several frames also [B, C, T, H, W], at least one patch high and wide."""
        if min(shape[-2:]) < self.patches.kernel_size[0]:
            return False
        return shape[1:-2] == (self.channels,) or (self.frames > 1 and shape[1:-2] == (self.channels, self.frames))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] or [B, C, T, H, W] -> [B, 1 + h * w, d], the class token first."""
        if inputs.ndim == 5 or self.frames == 1:
            picture = self.patches(inputs.flatten(1, -3))
        else:  # the same picture in all frames: their kernels add up
            kernel = self.patches.weight.unflatten(1, (self.channels, self.frames)).sum(2)
            picture = nn.functional.conv2d(inputs, kernel, stride=self.patches.stride)
        patches = self.norm(picture.flatten(2).mT)
        patches = patches + self.positions(*picture.shape[2:]).flatten(2).mT
        leading = (self.class_token + self.positions.before()).expand(len(patches), -1, -1)
        return torch.cat([leading, patches], dim=1)


class SignalStem(Stem):
    """Stretches of a signal of several channels, one after the other; a class token, and learned positions.

    Positions are learned for one length and resampled linearly for others.

    Args:
        width: d.
        channels: C.
        kernel_size: samples of a stretch, K.
        length: samples that the positions are learned for.
    """

    def __init__(self, width: int, channels: int, kernel_size: int, length: int) -> None:
        super().__init__()
        self.width = width
        self.channels = channels
        self.shapes = f"[B, {channels}, L] of L >= {kernel_size}"
        self.patches = nn.Conv1d(channels, width, kernel_size, kernel_size, bias=False)
        self.norm = nn.LayerNorm(width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + length // kernel_size, width))

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """[B, C, L] of at least one stretch."""
        return len(shape) == 3 and shape[1] == self.channels and shape[2] >= self.patches.kernel_size[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, L] -> [B, 1 + floor(L / K), d], the class token first."""
        patches = self.norm(self.patches(inputs).mT)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        positions: Tensor = self.positions
        if tokens.shape[1] != positions.shape[1]:
            later = nn.functional.interpolate(positions[:, 1:].mT, patches.shape[1], mode="linear").mT
            positions = torch.cat([positions[:, :1], later], dim=1)
        return tokens + positions


class TokenStem(Stem):
    """Embeddings of a text's tokens, with learned positions; the last token stands for the text.

    Args:
        width: d.
        vocabulary: how many ids there are; the largest one ends a text.
        length: tokens of a text, filled up with zeros.
    """

    def __init__(self, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.width = width
        self.length = length
        self.shapes = f"[B, {length}]"
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(1, length, width))

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """[B, L]."""
        return len(shape) == 2 and shape[1] == self.length

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, L] int64 -> [B, L, d]."""
        return self.tokens(inputs) + self.positions

    def place(self, inputs: Tensor) -> Tensor:
        """The token at the largest id."""
        return inputs.argmax(dim=1)


class Encoder(nn.Module):
    """Prepared inputs [B, ...] -> vectors [B, dimension], of any length.

    The token that stands for the input is normed and goes through the head.

    Args:
        stem: makes the tokens.
        modality: the sizes and kinds: depth, heads, drop_path, dropout, head_width, norm_epsilon, activation.
        dimension: of the vectors.
        causal: a token attends to those before it only.
        extra_key_value: attention has a learned key and value more.
        norm_before: a LayerNorm before the first block.
    """

    def __init__(
        self,
        stem: Stem,
        modality: Modality,
        dimension: int,
        *,
        causal: bool = False,
        extra_key_value: bool = False,
        norm_before: bool = False,
    ) -> None:
        super().__init__()
        width, depth, epsilon = stem.width, modality.depth, modality.norm_epsilon
        activation = quick_gelu if modality.activation == "quick_gelu" else nn.functional.gelu
        self.stem = stem
        self.norm_before = nn.LayerNorm(width, eps=epsilon) if norm_before else nn.Identity()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                SelfAttention(width, modality.heads, causal, extra_key_value),
                drop_path=modality.drop_path * number / max(depth - 1, 1),
                norm_epsilon=epsilon,
                activation=activation,
            )
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(modality.dropout)
        self.head: nn.Module = nn.Linear(width, dimension, bias=False)
        if modality.head_width is not None:
            hidden = modality.head_width
            self.head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dimension, bias=False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Biases zero; matrices, tokens and positions such that what comes out is as large as what went in.

        A fixed deviation of 0.02, usual at a width of 1000, leaves all inputs of a narrow encoder nearly the same
        vector, from which InfoNCE hardly finds a way out.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                inputs = parameter[0].numel() if name.endswith("weight") else parameter.shape[-1]
                nn.init.trunc_normal_(parameter, std=inputs**-0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether `shape` is one of a batch of inputs, [B, ...], rather than of clips, [B, S, ...], or of none."""
        return self.stem.accepts(shape)

    def trunk(self, tokens: Tensor) -> Tensor:
        """[B, N, d] of the stem -> [B, N, d] leaving the last block."""
        tokens = self.norm_before(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, ...] -> [B, dimension].

        Raises:
            VitrailError: the inputs are of another shape.
        """
        if not self.accepts(tuple(inputs.shape)):
            raise VitrailError(
                f"Inputs of shape {list(inputs.shape)} do not fit the encoder, which takes {self.stem.shapes}; "
                "prepare them with the modality's `read`."
            )
        tokens = self.norm_before(self.stem(inputs))
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        token = last(tokens, only=self.stem.place(inputs))[:, 0]  # the others would be computed for nothing
        return self.head(self.dropout(self.norm(token)))


def patch_encoder(
    modality: Modality,
    dimension: int,
    *,
    channels: int,
    kernel_size: int,
    stride: int,
    size: tuple[int, int],
) -> Encoder:
    """The encoder of audio, depth and thermal: a ViT with overlapping or disjoint patches of one channel or more.

    Args:
        modality: its sizes.
        dimension: of the vectors.
        channels, kernel_size, stride, size: of `PatchStem`.
    """
    stem = PatchStem(modality.width, channels, kernel_size, stride, size)
    return Encoder(stem, modality, dimension, extra_key_value=True)


def video_encoder(modality: Modality, dimension: int, *, patch_size: int, size: int, frames: int = 2) -> Encoder:
    """The encoder of images and video: a ViT whose patches are inflated over the frames, with a norm before it.

    Args:
        modality: its sizes.
        dimension: of the vectors.
        patch_size: pixels a side of a patch.
        size: pixels a side of the pictures that positions are learned for.
        frames: that make a clip.
    """
    stem = PatchStem(modality.width, 3, patch_size, patch_size, (size, size), frames, norm=False)
    return Encoder(stem, modality, dimension, norm_before=True)


def signal_encoder(modality: Modality, dimension: int, *, channels: int, kernel_size: int, length: int) -> Encoder:
    """The encoder of IMU signals.

    Args:
        modality: its sizes.
        dimension: of the vectors.
        channels, kernel_size, length: of `SignalStem`.
    """
    stem = SignalStem(modality.width, channels, kernel_size, length)
    return Encoder(stem, modality, dimension, extra_key_value=True)


def text_encoder(modality: Modality, dimension: int, *, vocabulary: int, length: int) -> Encoder:
    """The encoder of text, CLIP's: causal attention.

    Args:
        modality: its sizes.
        dimension: of the vectors.
        vocabulary, length: of `TokenStem`.
    """
    return Encoder(TokenStem(modality.width, vocabulary, length), modality, dimension, causal=True)
