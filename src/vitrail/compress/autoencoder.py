"""PQ-VAE: images to a grid of product-quantized indices, and back (Section 5.3.1)."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.compress.coding.bitstream import MAX_QUALITY
from vitrail.compress.coding.frequencies import MAX_SYMBOLS
from vitrail.compress.trunk import InferenceTrunk, Trunk
from vitrail.config import check_choices, check_range
from vitrail.errors import VitrailError
from vitrail.layers.inference import InferencePatches, fold_batch_norm
from vitrail.layers.patches import ConvolutionalPatches
from vitrail.layers.product_quantizer import ProductQuantizer, keep_parts

_PIXELS_AT_ONCE = 2**17  # of the picture that leaves the decoder
_TOKEN_ROWS = 32  # that the linear map to pixels takes at once


@dataclass(frozen=True)
class AutoencoderConfig:
    """Encoder, quantizer and decoder (Section 5.4.1); the defaults are XCiT-L6 at f = 16 with M = 4."""

    width: int = 768
    """Channels of a token, d."""
    depth: int = 6
    """XCiT blocks of the encoder, and of the decoder."""
    heads: int = 16
    """Of cross-covariance attention."""
    factor: Literal[8, 16] = 16
    """Pixels a side of the square that a token stands for, f."""
    parts: int = 4
    """Sub-vectors of a token, M: 2, 4, 6 in the thesis; 1: plain vector quantization."""
    centroids: int = 256
    """Of each sub-vector, V."""
    part_width: int = 8
    """Dimensions of a sub-vector."""
    nested: bool = False
    """Train for every number of sub-vectors from 1 to M at once, by dropping the last ones: one model, M rates."""
    shortcut: bool = False
    """Linear maps from pixels to tokens and from tokens to pixels beside the convolutions and blocks; ours."""
    commitment: float = 0.25
    """Weight of the commitment loss within the quantizer's loss."""
    usage_decay: float = 0.99
    """Of the moving average of how often centroids are used, a step."""
    dead_below: float = 0.1
    """A centroid used less than this fraction of its fair share 1 / V is moved beside a much used one; 0: never."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "width", "depth", "heads", "part_width", least=1)
        check_range(self, "parts", least=1, most=MAX_QUALITY)
        check_range(self, "centroids", least=2, most=MAX_SYMBOLS)
        check_range(self, "commitment", "dead_below", least=0)
        check_range(self, "usage_decay", least=0, below=1)

    def build(self) -> "Autoencoder":
        """The network with fresh weights."""
        return Autoencoder(self)


class Reconstruction(NamedTuple):
    """What an autoencoder makes of images in training.

    Attributes:
        images: [B, 3, H, W], about 0..1, not clamped.
        indices: [B, h, w, M] int64.
        quantizer_loss: scalar, L_PQ of Equation 5.4.
    """

    images: Tensor
    indices: Tensor
    quantizer_loss: Tensor


class Decoder(nn.Module):
    """The encoder's mirror image: XCiT blocks, then a transposed convolution for each of its strided ones."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.parts * config.part_width, config.width)
        self.trunk = Trunk(config.width, config.depth, config.heads)
        stages: list[nn.Module] = []
        width = config.width
        for _ in range(config.factor.bit_length() - 2):
            # A kernel of twice the stride covers every pixel equally often: no checkerboard.
            convolution = nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False)
            stages += [convolution, nn.BatchNorm2d(width // 2), nn.GELU()]
            width //= 2
        self.upsampling = nn.Sequential(*stages, nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1))
        self.shortcut = nn.Linear(config.width, 3 * config.factor**2) if config.shortcut else None

    def forward(self, vectors: Tensor) -> Tensor:
        """Quantized vectors [B, h, w, M * D] -> [B, 3, f h, f w], about -1..1."""
        expanded = self.expand(vectors)
        tokens = self.trunk(expanded.permute(0, 3, 1, 2))
        if self.shortcut is None:
            return self.upsampling(tokens.permute(0, 3, 1, 2))
        tokens = tokens + expanded
        return self.upsampling(tokens.permute(0, 3, 1, 2)) + _squares(self.shortcut(tokens))


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in 0..1 to indices [B, H / f, W / f, M] and back; sides are any multiples of f.

    Attributes:
        factor: f.
        parts: M.
        centroids: V.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.factor, self.parts, self.centroids = config.factor, config.parts, config.centroids
        self.patches = ConvolutionalPatches(config.width, config.factor)
        self.encoder = Trunk(config.width, config.depth, config.heads)
        self.quantizer = ProductQuantizer(
            config.width,
            config.parts,
            config.centroids,
            config.part_width,
            config.commitment,
            config.usage_decay,
            config.dead_below,
        )
        self.decoder = Decoder(config)
        self.shortcut: nn.Conv2d | None = None
        if config.shortcut:
            self.shortcut = nn.Conv2d(3, config.width, config.factor, stride=config.factor)

    def _tokens(self, images: Tensor) -> Tensor:
        _check_sides(images, self.factor)
        centred = 2 * images - 1
        tokens = self.encoder(self.patches(centred))
        return tokens if self.shortcut is None else tokens + self.shortcut(centred).permute(0, 2, 3, 1)

    def _picture(self, vectors: Tensor) -> Tensor:
        return (self.decoder(vectors.flatten(3)) + 1) / 2

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1, sides multiples of f -> indices [B, H / f, W / f, M] int64.

        Raises:
            VitrailError: a side is no multiple of f.
        """
        return self.quantizer.nearest(self.quantizer.project(self._tokens(images)))

    def decode(self, indices: Tensor) -> Tensor:
        """Indices [B, h, w, m] of the first m <= M sub-vectors -> images [B, 3, f h, f w] in 0..1."""
        return self.reconstruct(indices).clamp(0, 1)

    def reconstruct(self, indices: Tensor, kept: Tensor | None = None) -> Tensor:
        """The same before values are clamped.

        Args:
            indices: [B, h, w, m].
            kept: [B], how many sub-vectors of each sample the decoder is given; None: all m.
        """
        vectors = F.pad(self.quantizer.lookup(indices), (0, 0, 0, self.parts - indices.shape[3]))
        return self._picture(vectors if kept is None else keep_parts(vectors, kept))

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Reconstruction:
        """Images [B, 3, H, W] in 0..1 -> what training needs.

        Args:
            images: sides multiples of f.
            kept: [B], how many sub-vectors of each sample the decoder is given; None: all.

        Raises:
            VitrailError: a side is no multiple of f.
        """
        quantized = self.quantizer(self._tokens(images))
        vectors = quantized.vectors if kept is None else keep_parts(quantized.vectors, kept)
        return Reconstruction(self._picture(vectors), quantized.indices, quantized.loss)

    @torch.no_grad()
    def optimize_for_inference(self) -> "InferenceAutoencoder":
        """A copy that computes the same, to rounding, in less time and memory, for inference alone."""
        return InferenceAutoencoder(copy.deepcopy(self)).requires_grad_(False).eval()


class InferenceAutoencoder(nn.Module):
    """What `Autoencoder.optimize_for_inference` makes: at full resolution it works on bands of a picture."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.factor, self.parts, self.centroids = autoencoder.factor, autoencoder.parts, autoencoder.centroids
        self.patches = InferencePatches(autoencoder.patches)
        self.encoder = InferenceTrunk(autoencoder.encoder)
        self.quantizer = autoencoder.quantizer
        self.expand = autoencoder.decoder.expand
        self.decoder = InferenceTrunk(autoencoder.decoder.trunk)
        self.upsampling = InferenceUpsampling(autoencoder.decoder.upsampling)
        self.shortcut, self.shortcut_back = autoencoder.shortcut, autoencoder.decoder.shortcut

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1, sides multiples of f -> indices [B, H / f, W / f, M] int64.

        Raises:
            VitrailError: a side is no multiple of f.
        """
        _check_sides(images, self.factor)
        centred = images.mul(2).sub_(1)
        tokens = self.encoder(self.patches(centred))
        if self.shortcut is not None:
            tokens = tokens + self.shortcut(centred).permute(0, 2, 3, 1)
        return self.quantizer.nearest(self.quantizer.project(tokens))

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Indices [B, h, w, m] of the first m <= M sub-vectors -> images [B, 3, f h, f w] in 0..1."""
        vectors = F.pad(self.quantizer.lookup(indices), (0, 0, 0, self.parts - indices.shape[3]))
        expanded = self.expand(vectors.flatten(3))
        tokens = self.decoder(expanded if self.shortcut_back is None else expanded.clone())
        if self.shortcut_back is not None:
            tokens = tokens + expanded
        picture = self.upsampling(tokens)
        if self.shortcut_back is not None:
            for row in range(0, tokens.shape[1], _TOKEN_ROWS):
                band = _squares(self.shortcut_back(tokens[:, row : row + _TOKEN_ROWS]))
                picture[:, :, self.factor * row : self.factor * row + band.shape[2]] += band
        return picture.add_(1).div_(2).clamp_(0, 1)


class InferenceUpsampling(nn.Module):
    """A decoder's transposed convolutions with their batch norms folded, a band of the picture at a time."""

    def __init__(self, upsampling: nn.Sequential) -> None:
        super().__init__()
        layers = list(upsampling)
        convolutions = cast(list[nn.ConvTranspose2d], layers[::3])
        norms = [*cast(list[nn.BatchNorm2d], layers[1::3]), None]
        self.stages = nn.ModuleList(map(_FoldedTransposed, convolutions, norms))

    def forward(self, tokens: Tensor, rows_at_once: int | None = None) -> Tensor:
        """[B, h, w, d] -> [B, 3, f h, f w].

        Args:
            tokens: of the whole picture.
            rows_at_once: of the picture, in a band; None: as many as keep the work small.
        """
        picture = tokens.permute(0, 3, 1, 2)
        heights = [picture.shape[2] << stage for stage in range(len(self.stages) + 1)]
        width = picture.shape[3] << len(self.stages)
        rows = rows_at_once or max(2 * heights[-1] // heights[0], _PIXELS_AT_ONCE // (len(tokens) * width))
        out = tokens.new_empty(len(tokens), 3, heights[-1], width)
        for top in range(0, heights[-1], rows):
            out[:, :, top : top + rows] = self._band(picture, heights, top, min(top + rows, heights[-1]))
        return out

    def _band(self, picture: Tensor, heights: list[int], top: int, bottom: int) -> Tensor:
        """The rows [top, bottom) of the picture, as if all of it had been there: [B, 3, rows, f w]."""
        spans = [(top, bottom)]  # the rows of each stage that the next one needs
        for height in reversed(heights[:-1]):
            first, last = spans[0]
            # Row y is made of the rows from (y - 1) // 2 to (y + 1) // 2, rounded down.
            spans.insert(0, (max((first - 1) // 2, 0), min(last // 2 + 1, height)))
        x = picture[:, :, slice(*spans[0])]
        for stage, ((begin, _), (first, last)) in zip(self.stages, pairwise(spans), strict=True):
            x = stage(x, first - 2 * begin, last - 2 * begin)
        return x


class _FoldedTransposed(nn.Module):
    """A transposed 4x4 convolution of stride 2, with the batch norm and the GELU after it where there are such."""

    def __init__(self, convolution: nn.ConvTranspose2d, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.activate = norm is not None
        if norm is None:
            assert convolution.bias is not None
            self.weight, self.bias = nn.Buffer(convolution.weight.clone()), nn.Buffer(convolution.bias.clone())
        else:
            factor, shift = fold_batch_norm(norm)
            self.weight = nn.Buffer((convolution.weight * factor[:, None, None]).to(convolution.weight))
            self.bias = nn.Buffer(shift.to(convolution.weight))

    def forward(self, x: Tensor, first: int, last: int) -> Tensor:
        """[B, i, h, w] -> the rows from `first` to `last` of [B, o, 2 h, 2 w]."""
        x = F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)[:, :, first:last]
        return F.gelu(x) if self.activate else x


def _check_sides(images: Tensor, factor: int) -> None:
    if images.shape[2] % factor or images.shape[3] % factor:
        raise VitrailError(
            f"A picture of {images.shape[3]} x {images.shape[2]} pixels cannot be cut into squares of {factor}; "
            f"pad its sides to multiples of {factor}."
        )


def _squares(values: Tensor) -> Tensor:
    """What linear maps make of tokens, [B, h, w, 3 f f] -> the squares that they stand for, [B, 3, f h, f w]."""
    return F.pixel_shuffle(values.permute(0, 3, 1, 2), math.isqrt(values.shape[3] // 3))


# Width, blocks, heads: Figure 5.8's sizes, of which the thesis names L6's width; the others are XCiT's (Table 3.2).
AUTOENCODERS: dict[str, AutoencoderConfig] = {
    "t6": AutoencoderConfig(width=192, depth=6, heads=4),
    "s6": AutoencoderConfig(width=384, depth=6, heads=8),
    "m6": AutoencoderConfig(width=512, depth=6, heads=8),
    "l6": AutoencoderConfig(width=768, depth=6, heads=16),
}
