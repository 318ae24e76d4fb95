"""A codec behind the methods of CompressAI's models, for evaluations that were written for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from vitrail.compress.codec import Codec, padded
from vitrail.compress.coding.frequencies import PRECISION
from vitrail.compress.errors import CodecError
from vitrail.compress.stages import Scheme
from vitrail.metrics.reconstruction import to_8_bits


class CompressAIModel(nn.Module):
    """`forward`, `compress`, `decompress` and `update` as CompressAI's models have them; CompressAI is not needed.

    Pictures are rounded to 8 bits first, as in files, and may have any size: padding is done here, and undone. Nothing
    has a gradient. What runs where is the codec's choice; inputs may lie on any device, and outputs lie there as well.

    Args:
        codec: makes and reads the files.
        quality: sub-vectors of each position; None: all.
        scheme: the order of the positions, a fixed pattern; None: the quincunx in 5 stages.

    Raises:
        CodecError: the codec has no such quality, or the scheme depends on the picture.
    """

    def __init__(self, codec: Codec, quality: int | None = None, scheme: Scheme | None = None) -> None:
        super().__init__()
        self.codec, self.quality, self.scheme = codec, codec.check_quality(quality), scheme or Scheme()
        if self.scheme.adaptive:
            raise CodecError(f"Rates of {self.scheme.kind} cannot be estimated; choose a fixed pattern.")
        self.autoencoder = codec.autoencoder  # evaluations ask for the parameters

    def update(self, force: bool = False, **_: Any) -> bool:
        """Nothing is left to build before entropy coding: False."""
        return False

    @torch.inference_mode()
    def forward(self, images: Tensor) -> dict[str, Any]:
        """Images [B, 3, H, W] in 0..1 -> reconstructions and estimated rates.

        Returns:
            `x_hat`, [B, 3, H, W] in 0..1; `likelihoods`, {"indices": [B, h, w, m]} in float64, the probability of each
            index given the stages before its own, so that -log2 summed is the estimated number of bits. A file has its
            header, checks and rounding besides.
        """
        height, width = images.shape[2:]
        weights = next(self.autoencoder.parameters())
        pixels = [padded(np.asarray(image), self.autoencoder.factor) for image in _pictures(images)]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(weights) / 255
        indices = self.autoencoder.encode(batch)[..., : self.quality].contiguous()
        made = to_8_bits(self.autoencoder.decode(indices))[..., :height, :width] / 255
        return {"x_hat": made.to(images), "likelihoods": {"indices": self._likelihoods(indices).to(images.device)}}

    def compress(self, images: Tensor) -> dict[str, Any]:
        """Images [B, 3, H, W] in 0..1 -> `strings`, [[bytes of each picture]], whole files, and `shape`, (h, w)."""
        strings = [self.codec.compress(image, self.quality, self.scheme) for image in _pictures(images)]
        factor = self.autoencoder.factor
        return {"strings": [strings], "shape": (-(-images.shape[2] // factor), -(-images.shape[3] // factor))}

    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """What `compress` returned -> `x_hat`, [B, 3, H, W] in 0..1; files know their size, `shape` is not needed."""
        pictures = [pil_to_tensor(self.codec.decompress(data)) for data in strings[0]]
        return {"x_hat": torch.stack(pictures) / 255}

    def _likelihoods(self, indices: Tensor) -> Tensor:
        stages = self.scheme.partition(indices.shape[1], indices.shape[2])
        marginals = torch.from_numpy(self.codec.marginals).double()
        first = marginals / marginals.sum(dim=1, keepdim=True)
        parts = torch.arange(indices.shape[3])
        result = first[parts, indices.cpu()]
        prior = self.codec.prior
        device = next(prior.parameters()).device
        for stage in range(1, int(stages.max()) + 1):
            known = (stages < stage).expand(indices.shape[:3])
            hidden = torch.where(known[..., None], indices.cpu(), 0)
            probabilities = prior(hidden.to(device), known.to(device)).softmax(dim=-1).cpu()
            now = stages == stage
            result[:, now] = probabilities[:, now].gather(-1, indices.cpu()[:, now][..., None])[..., 0]
        return result.clamp(min=2.0**-PRECISION)  # as in the coder, nothing is impossible


def _pictures(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in 0..1 -> RGB pictures of 8 bits."""
    return [to_pil_image(image) for image in to_8_bits(images.float()).byte().cpu()]
