"""One classifier at several test resolutions (Figure 3.3, Table 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.data.datasets import ImageData
from vitrail.data.loader import LoaderConfig, evaluation_batches
from vitrail.errors import VitrailError
from vitrail.metrics.classification import Classification
from vitrail.plots import new_figure, save_figure
from vitrail.recognize.classify import Classifier


@dataclass(frozen=True)
class Evaluation:
    """A classifier's figures at one test resolution.

    Attributes:
        size: pixels a side.
        metric: accuracy and confusion matrix.
        skipped: path -> reason of the files that could not be read.
    """

    size: int
    metric: Classification
    skipped: dict[str, str]


@torch.inference_mode()
def evaluate_at(
    classifier: Classifier, data: ImageData, size: int, batch_size: int = 64, loader: LoaderConfig = LoaderConfig()
) -> Evaluation:
    """Accuracy on labelled images of `size` x `size` pixels.

    Raises:
        VitrailError: the images have no labels, or other classes than the classifier.
    """
    classifier = classifier.at_size(size)
    dataset = data.open(classifier.transform.build(), classes=classifier.classes)
    metric = Classification(len(classifier.classes))
    device = next(classifier.model.parameters()).device
    batches = evaluation_batches(dataset, batch_size=batch_size, loader=loader)
    for batch in batches:
        if not hasattr(batch, "label"):
            raise VitrailError(f"The images in {data.root} have no labels; give class folders or a list with labels.")
        metric.update(logits=classifier.model(batch.image.to(device)).float(), labels=batch.label)
    return Evaluation(size, metric, batches.corrupt)


def plot_resolutions(curves: dict[str, Sequence[tuple[int, float]]], path: str | Path) -> None:
    """Writes top-1 accuracy against test resolution, one curve per model, as in Figure 3.3.

    Args:
        curves: name of a model -> (pixels a side, top-1 in 0..1), any order.
        path: where to.
    """
    figure = new_figure(5, 3.6)
    axis = figure.subplots()
    for name, points in curves.items():
        sizes, accuracies = zip(*sorted(points), strict=True)
        axis.plot(sizes, [100 * accuracy for accuracy in accuracies], marker="o", label=name)
    axis.set_xlabel("test resolution (pixels)")
    axis.set_ylabel("top-1 accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)
