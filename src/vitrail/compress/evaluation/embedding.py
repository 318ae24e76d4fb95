"""One vector a picture, by a network that is named: what FID and KID compare."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.engine.checkpoint import open_task
from vitrail.errors import FileError, VitrailError


class Embedding(nn.Module):
    """Images in 0..1 -> the features of a frozen network's last layer, averaged over places.

    Args:
        name: which network, for every result that comes of it.
        network: any.
        features: normalised images [B, 3, size, size] -> [B, d].
        size: pixels a side that images are resized to.
        mean: of each colour, what the network expects.
        std: of each colour.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        features: Callable[[Tensor], Tensor],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.network = network.eval().requires_grad_(False)
        self._features = features
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(std).view(3, 1, 1))

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1, on any device -> [B, d]; resized bilinearly to the network's size."""
        images = images.to(self.mean.device)
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self._features((images - self.mean) / self.deviation)


def load_embedding(name: str) -> Embedding:
    """The network that `name` names, in the words of `vitrail.compress.perceptual.FeaturesConfig`.

    timm:NAME, from the hub; timm:NAME=FILE, with weights from a local file; or the checkpoint of an image model.
    `timm:inception_v3.tv_in1k=FILE` takes torchvision's file of Inception v3, whose averaged last map (2048 features)
    is what FID is usually measured with; published figures come of weights converted from TensorFlow, and differ.

    Raises:
        VitrailError: there is no such network, its weights cannot be had or do not fit.
    """
    try:
        if name.startswith("timm:"):
            return _timm_embedding(name, *name.removeprefix("timm:").partition("=")[::2])
        experiment, task = open_task(name)
        transform = experiment.eval_transform
        return _own_embedding(name, task.backbone, transform.size, transform.mean, transform.std)
    except VitrailError:
        raise
    except Exception as error:  # whatever timm raises without a network, or a checkpoint without a backbone
        raise VitrailError(
            f"The features {name} cannot be loaded ({str(error).splitlines()[0]}); "
            "give timm:NAME, timm:NAME=FILE or the checkpoint of an image model."
        ) from error


def _timm_embedding(name: str, model: str, file: str) -> Embedding:
    import timm

    if file and not Path(file).is_file():
        raise FileError(f"There is no file {file} with weights of {model}; check the path.")
    inception = model.startswith("inception_v3")
    # With its auxiliary classifier, which torchvision's file holds, timm refuses a file that does not fit.
    options: dict[str, Any] = {"aux_logits": True} if inception else {}
    overlay = {"file": file} if file else None
    network: Any = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    if inception:
        network.AuxLogits, network.aux_logits = None, False
    expected = timm.data.resolve_data_config(model=network)

    def features(images: Tensor) -> Tensor:
        return network.forward_head(network.forward_features(images), pre_logits=True).flatten(1)

    return Embedding(name, network, features, expected["input_size"][1], expected["mean"], expected["std"])


def _own_embedding(name: str, backbone: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> Embedding:
    def features(images: Tensor) -> Tensor:
        return backbone.forward_features(images).class_token

    return Embedding(name, backbone, features, size, mean, std)
