"""A codec's indices as visual words: the file that pre-training takes them from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.compress.autoencoder import Autoencoder
from vitrail.compress.training.autoencoder import CodecTask
from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from vitrail.engine.checkpoint import open_task
from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path


class _Words(nn.Module):
    """Pictures [B, 3, H, W], normalised by ImageNet's mean and deviation -> indices [B, h, w]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.patches, self.encoder, self.quantizer = autoencoder.patches, autoencoder.encoder, autoencoder.quantizer
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h, w] int64."""
        tokens = self.encoder(self.patches(2 * (images * self.deviation + self.mean) - 1))
        vectors = self.quantizer.project(tokens)[..., 0, :]  # M = 1
        return (vectors @ self.quantizer.unit_codebook()[0].mT).argmax(dim=-1)


def export_tokenizer(codec: str | Path, output: str | Path, size: int = 224) -> tuple[int, int]:
    """Writes a torch.export program that says the indices of a codec with one sub-vector a token, M = 1.

    Args:
        codec: the checkpoint or folder of a run that trained an autoencoder.
        output: ends in .pt2.
        size: pixels a side of the pictures that the codec is shown, those of `Tokenizer.resized`; any batch size.

    Returns:
        The number of words, and the pixels a side that each stands for.

    Raises:
        VitrailError: it is no codec, has several sub-vectors, or the size is no multiple of its tokens'.
    """
    if Path(output).suffix != ".pt2":
        raise VitrailError(f"A tokenizer is a torch.export program; {output} must end in .pt2.")
    _, task = open_task(codec)
    if not isinstance(task, CodecTask):
        raise FileError(f"{codec} trained no codec; take a run of an autoencoder.")
    autoencoder = task.autoencoder
    if autoencoder.parts != 1:
        raise VitrailError(
            f"{codec} has {autoencoder.parts} sub-vectors a token, so that a patch has no single word; train a codec "
            "with --autoencoder.parts 1 and more centroids."
        )
    if size % autoencoder.factor:
        raise VitrailError(f"The size {size} is no multiple of the codec's {autoencoder.factor} pixels; choose one.")
    program = torch.export.export(
        _Words(autoencoder).eval(),
        (torch.zeros(2, 3, size, size),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    with atomic_path(output) as temporary:
        torch.export.save(program, temporary)
    return autoencoder.centroids, autoencoder.factor
