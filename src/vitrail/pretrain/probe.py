"""What features know: a linear classifier on frozen layers, and nearest neighbours (Figure 4.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.backbones.features import Backbone
from vitrail.data.loader import Dataset, LoaderConfig, evaluation_batches
from vitrail.errors import VitrailError
from vitrail.metrics.neighbours import knn_accuracy
from vitrail.plots import new_figure, save_figure

OUTPUT = -1
"""The number that stands for what a backbone says of the whole image, its class token, among its layers."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of labelled images."""

    layers: Mapping[int, Tensor]
    """By layer the mean of its patches, and under `OUTPUT` the class token: [n, d] float32 each, on the CPU."""
    labels: Tensor
    """[n] int64."""


@torch.no_grad()
def extract(
    backbone: Backbone,
    images: Dataset,
    layers: Sequence[int] = (),
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    loader: LoaderConfig = LoaderConfig(),
) -> LabelledFeatures:
    """Features of every image, once.

    Args:
        backbone: on `device`, in evaluation mode.
        images: samples with an `image` and a `label`.
        layers: by number, 0-based, each once if it is named twice; the class token is always among the results.
        batch_size: images at once.
        device: where the backbone is.
        loader: how images are read.

    Raises:
        VitrailError: no such layer; the images have no labels.
    """
    layers = list(dict.fromkeys(layers))
    found: dict[int, list[Tensor]] = {layer: [] for layer in (*layers, OUTPUT)}
    labels = []
    for batch in evaluation_batches(images, batch_size=batch_size, loader=loader):
        if not hasattr(batch, "label"):
            raise VitrailError("The images have no labels; give class folders, or a list or tar shards with labels.")
        features = backbone.forward_features(batch.image.to(device), layers)
        for layer, tokens in zip(layers, features.layers, strict=True):
            found[layer].append(tokens.mean(dim=1).float().cpu())
        found[OUTPUT].append(features.class_token.float().cpu())
        labels.append(batch.label)
    return LabelledFeatures({layer: torch.cat(parts) for layer, parts in found.items()}, torch.cat(labels))


@dataclass(frozen=True)
class LinearClassifier:
    """A linear layer behind a batch norm without learned scale and shift."""

    mean: Tensor
    """[d], of the training features."""
    deviation: Tensor
    """[d], of the training features."""
    weight: Tensor
    """[classes, d]."""
    bias: Tensor
    """[classes]."""

    def __call__(self, features: Tensor) -> Tensor:
        """[n, d] -> logits [n, classes]."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of features [n, d] that are classified as their labels [n] say."""
        return float((self(features).argmax(dim=1) == labels).double().mean())


def check_penalty(penalty: float) -> None:
    """Raises VitrailError if no linear classifier can be found under it; at its limit, weights are long 0."""
    if not 0 <= penalty <= 1e6:
        raise VitrailError(f"The penalty of a linear probe is {penalty:g}; it must be a number from 0 to 1000000.")


def fit_linear(features: Tensor, labels: Tensor, penalty: float = 1e-3, iterations: int = 300) -> LinearClassifier:
    """The classifier of the least mean cross-entropy + penalty / 2 |W|^2, by L-BFGS on all features at once.

    It is convex: start and seed make no difference.

    Args:
        features: [n, d].
        labels: [n] int64, from 0.
        penalty: of the weights' squares, not the biases'.
        iterations: of L-BFGS, at most.

    Raises:
        VitrailError: the labels are all the same, or the penalty cannot be.
    """
    check_penalty(penalty)
    if len(labels.unique()) < 2:
        raise VitrailError("A linear probe needs images of at least two classes; give some.")
    mean, deviation = features.mean(dim=0), (features.var(dim=0, unbiased=False) + 1e-5).sqrt()
    inputs = (features - mean) / deviation
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearClassifier(mean, deviation, weight.detach(), bias.detach())


@dataclass(frozen=True)
class Probe:
    """Accuracies on the test images, 0..1."""

    linear: Mapping[int, float]
    """By layer; `OUTPUT` is the class token."""
    neighbours: float | None
    """Of the vote of nearest neighbours by the class token, if it was asked for."""


def probe(
    train: LabelledFeatures, test: LabelledFeatures, penalty: float = 1e-3, neighbours: int | None = None
) -> Probe:
    """A linear classifier for each layer, and nearest neighbours.

    Args:
        train: what they learn from.
        test: what they are tested on, by the same backbone.
        penalty: of `fit_linear`.
        neighbours: how many vote, at most all; None: no vote.
    """
    linear = {
        layer: fit_linear(features, train.labels, penalty).accuracy(test.layers[layer], test.labels)
        for layer, features in train.layers.items()
    }
    knn = None
    if neighbours is not None:
        knn = knn_accuracy(test.layers[OUTPUT], test.labels, train.layers[OUTPUT], train.labels, neighbours)
    return Probe(linear, knn)


def plot_layers(curves: Mapping[str, Mapping[int, float]], path: str | Path) -> None:
    """Draws accuracy against the layer, a curve a network, its class token as a point behind the last (Figure 4.5).

    Raises:
        VitrailError: the suffix of `path` names no format of pictures, or matplotlib is not installed.
    """
    figure = new_figure(5, 3.5)
    axis = figure.subplots()
    for name, accuracies in curves.items():
        layers = sorted(layer for layer in accuracies if layer != OUTPUT)
        (line,) = axis.plot(layers, [100 * accuracies[layer] for layer in layers], marker="o", label=name)
        if OUTPUT in accuracies:
            axis.plot([max(layers, default=-1) + 1], [100 * accuracies[OUTPUT]], marker="*", color=line.get_color())
    axis.set_xlabel("layer (star: the network's output)")
    axis.set_ylabel("accuracy of a linear probe (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)
