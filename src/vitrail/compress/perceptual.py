"""Deep features of pictures, and how far apart two pictures are in them: LPIPS (Zhang et al., 2018)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.engine.checkpoint import open_task
from vitrail.errors import FileError, VitrailError

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class FeaturesConfig:
    """Which deep features pictures are compared in, and where their weights are."""

    network: str = "timm:vgg16.tv_in1k"
    """timm:NAME, from the hub; timm:NAME=FILE, with weights from a local file; or the checkpoint of an image model."""
    linear: Path | None = None
    """LPIPS' weights of the channels, a file of the lpips package that fits the network; none: all channels count 1."""
    channels: tuple[int, ...] = ()
    """Of each map; read from the network before training."""

    def prepared(self) -> Self:
        """With the numbers of channels read from the network.

        Raises:
            VitrailError: the network cannot be loaded.
        """
        return self if self.channels else replace(self, channels=load_features(self.network).channels)


class FeatureExtractor(nn.Module):
    """Images in 0..1 -> maps of a frozen network at several scales; gradients reach the images.

    Attributes:
        channels: of each map.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, maps: Callable[[Tensor], Sequence[Tensor]], mean: Sequence, std: Sequence
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._maps = maps
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(std).view(3, 1, 1))
        with torch.no_grad():
            self.channels = tuple(features.shape[1] for features in self(torch.zeros(1, 3, 64, 64)))

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] in 0..1 -> maps [B, C, h, w], the finest first."""
        return tuple(self._maps((images - self.mean) / self.deviation))


def load_features(name: str) -> FeatureExtractor:
    """The features that `FeaturesConfig.network` names.

    Of a timm network the maps at up to five scales (of VGG those of LPIPS), of a checkpoint four layers, evenly spaced.

    Raises:
        VitrailError: there is no such network, its weights cannot be had or do not fit.
    """
    try:
        if name.startswith("timm:"):
            return _timm_features(*name.removeprefix("timm:").partition("=")[::2])
        experiment, task = open_task(name)
        return _own_features(task.backbone, experiment.eval_transform)
    except VitrailError:
        raise
    except Exception as error:  # whatever timm raises without a network, or a checkpoint without a backbone
        raise VitrailError(
            f"The features {name} cannot be loaded ({str(error).splitlines()[0]}); "
            "give timm:NAME, timm:NAME=FILE or the checkpoint of an image model."
        ) from error


def _timm_features(name: str, file: str) -> FeatureExtractor:
    import timm

    if file and not Path(file).is_file():
        raise FileError(f"There is no file {file} with weights of {name}; check the path.")
    overlay = {"file": file} if file else None
    network: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    chosen = list(range(min(5, len(network.feature_info))))
    network.prune_intermediate_layers(chosen, prune_norm=True, prune_head=True)
    expected = timm.data.resolve_data_config(model=network)

    def maps(images: Tensor) -> Sequence[Tensor]:
        return network.forward_intermediates(images, indices=chosen, intermediates_only=True)

    return FeatureExtractor(network, maps, expected["mean"], expected["std"])


def _own_features(backbone: Any, transform: Any) -> FeatureExtractor:
    count = len(backbone.blocks) if hasattr(backbone, "blocks") else 4
    layers = sorted({round(quarter * count / 4) - 1 for quarter in (1, 2, 3, 4)} - {-1})

    def maps(images: Tensor) -> Sequence[Tensor]:
        return backbone.forward_features(images, layers).maps()

    return FeatureExtractor(backbone, maps, transform.mean, transform.std)


def perceptual_distance(maps: Maps, others: Maps, weights: Sequence[Tensor] | None = None) -> Tensor:
    """LPIPS of pictures by their features, [B]: 0 where alike.

    At each place of each map the features are scaled to unit length; the squared differences are summed over channels
    by their weights, averaged over places, and summed over maps.

    Args:
        maps: [B, C, h, w] each.
        others: of the same shapes.
        weights: [C] for each map; None: 1.
    """
    total = maps[0].new_zeros(len(maps[0]), dtype=torch.float32)
    for number, (features, other) in enumerate(zip(maps, others, strict=True)):
        squares = (F.normalize(features.float(), dim=1) - F.normalize(other.float(), dim=1)).square()
        if weights is not None:
            squares = squares * weights[number].view(-1, 1, 1)
        total = total + squares.sum(dim=1).mean(dim=(1, 2))
    return total


def load_linear(path: Path, channels: Sequence[int]) -> list[Tensor]:
    """LPIPS' learned weights of the channels, [C] for each map, from a file of the lpips package.

    Raises:
        FileError: no such file, or its weights are for other maps.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights = [tensor.flatten() for _, tensor in sorted(state.items())]
    except Exception as error:  # a missing or damaged file, or one of another kind
        raise FileError(
            f"Cannot read LPIPS' weights in {path} ({str(error).splitlines()[0]}); give a file of the lpips package."
        ) from None
    if [len(weight) for weight in weights] != list(channels):
        raise FileError(
            f"The weights in {path} are for maps of {[len(weight) for weight in weights]} channels, the network's "
            f"have {list(channels)}; give the file that belongs to the network."
        )
    return weights
