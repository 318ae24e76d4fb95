"""The score of a classifier: at several test resolutions (Figure 3.3, Table 3.4), and class by class."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitrail.data.datasets import ImageData
from vitrail.data.loader import LoaderConfig, evaluation_batches
from vitrail.errors import VitrailError
from vitrail.files import atomic_path
from vitrail.metrics.classification import Classification
from vitrail.plots import new_figure, plain, save_figure
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


MOST_NAMED = 100
"""Classes that a picture of the confusion matrix has room to name, with their counts."""


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


def plot_resolutions(curves: Mapping[str, Sequence[tuple[int, float]]], path: str | Path) -> None:
    """Writes top-1 accuracy against test resolution, one curve per model, as in Figure 3.3.

    Args:
        curves: name of a model -> (pixels a side, top-1 in 0..1), any order.
        path: where to.
    """
    figure = new_figure(5, 3.6)
    axis = figure.subplots()
    for name, points in curves.items():
        sizes, accuracies = zip(*sorted(points), strict=True)
        axis.plot(sizes, [100 * accuracy for accuracy in accuracies], marker="o", label=plain(name))
    axis.set_xlabel("test resolution (pixels)")
    axis.set_ylabel("top-1 accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def write_confusion(confusion: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Writes how often class (row) was taken for class (column), as a table (.csv) or a picture.

    Args:
        confusion: [C, C] counts, rows the true classes.
        classes: their names.
        path: where to.
    """
    if Path(path).suffix == ".csv":
        with (
            atomic_path(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *classes])
            writer.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
        return
    side = 2.5 + 0.22 * min(len(classes), MOST_NAMED)
    figure = new_figure(side, side)
    axis = figure.subplots()
    axis.imshow((confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(classes) > MOST_NAMED:
        save_figure(figure, path)
        return
    names = [plain(name) for name in classes]
    axis.set_xticks(range(len(classes)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(classes)), names, fontsize=7)
    for row, column in confusion.nonzero().tolist():
        axis.text(column, row, str(int(confusion[row, column])), ha="center", va="center", fontsize=6)
    save_figure(figure, path)
