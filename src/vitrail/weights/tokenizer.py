"""A codec's indices, or DALL-E's, as visual words: the file that pre-training takes them from."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.compress.autoencoder import Autoencoder
from vitrail.compress.training.autoencoder import CodecTask
from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from vitrail.engine.checkpoint import open_task
from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path
from vitrail.pretrain.dall_e import DallEEncoder


class Exported(NamedTuple):
    """What a tokenizer's file has.

    Attributes:
        words: their number, V.
        patch_size: pixels a side that each stands for.
    """

    words: int
    patch_size: int


class _Words(nn.Module):
    """Pictures [B, 3, H, W], normalised by ImageNet's mean and deviation -> the words of a network, [B, h, w] int64.

    Args:
        network: pictures in 0..1 to the scores of their words, [B, h, w, V].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.deviation + self.mean).argmax(dim=-1)


class _CodecWords(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 -> cosines with a codec's centroids, [B, h, w, V]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.patches, self.encoder, self.quantizer = autoencoder.patches, autoencoder.encoder, autoencoder.quantizer

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(self.patches(2 * images - 1))
        vectors = self.quantizer.project(tokens)[..., 0, :]  # M = 1
        return vectors @ self.quantizer.unit_codebook()[0].mT


class _DallEWords(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 -> the logits of DALL-E's words, [B, h, w, V]."""

    def __init__(self, encoder: DallEEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).movedim(1, -1)


def export_tokenizer(source: str | Path | DallEEncoder, output: str | Path, size: int = 224) -> Exported:
    """Writes a torch.export program that says the words of pictures.

    Args:
        source: the checkpoint or folder of a run that trained an autoencoder with one sub-vector a token, M = 1; or
            DALL-E's `encoder.pkl`, of which tensors are read and nothing is run, or such a network.
        output: ends in .pt2.
        size: pixels a side of the pictures that the program is shown, those of `Tokenizer.resized`; any batch size.

    Raises:
        VitrailError: the source is neither, or has several sub-vectors, or the size is no multiple of its words'.
    """
    if Path(output).suffix != ".pt2":
        raise VitrailError(f"A tokenizer is a torch.export program; {output} must end in .pt2.")
    network, about = _words_of(source)
    if size % about.patch_size:
        raise VitrailError(f"The size {size} is no multiple of the {about.patch_size} pixels of a word; choose one.")
    program = torch.export.export(
        _Words(network).eval(),
        (torch.zeros(2, 3, size, size),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    with atomic_path(output) as temporary:
        torch.export.save(program, temporary)
    return about


def _words_of(source: str | Path | DallEEncoder) -> tuple[nn.Module, Exported]:
    if not isinstance(source, DallEEncoder) and Path(source).suffix in (".pkl", ".pt", ".pth"):
        source = DallEEncoder.from_file(source)
    if isinstance(source, DallEEncoder):
        return _DallEWords(source), Exported(source.head.out_channels, source.factor)
    _, task = open_task(source)
    if not isinstance(task, CodecTask):
        raise FileError(f"{source} trained no codec; take a run of an autoencoder, or DALL-E's encoder.pkl.")
    autoencoder = task.autoencoder
    if autoencoder.parts != 1:
        raise VitrailError(
            f"{source} has {autoencoder.parts} sub-vectors a token, so that a patch has no single word; train a codec "
            "with --autoencoder.parts 1 and more centroids."
        )
    return _CodecWords(autoencoder), Exported(autoencoder.centroids, autoencoder.factor)
