"""Classification: training as in Section 3.5.1, and naming what is in a picture."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.backbones import BackboneConfig
from vitrail.backbones.vit import ViT
from vitrail.backbones.xcit import XCiT, XCiTConfig
from vitrail.config import check_range
from vitrail.data.augmentation import EvalTransform, Mixing, TrainTransform
from vitrail.data.corrupt import CorruptSample
from vitrail.data.datasets import ImageData, ImageFiles
from vitrail.data.images import read_image
from vitrail.data.loader import Dataset
from vitrail.data.samples import LabelledImages
from vitrail.data.tars import TarImages
from vitrail.engine.experiment import Experiment
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase, Task
from vitrail.errors import VitrailError
from vitrail.metrics.classification import Classification as ClassificationMetric
from vitrail.recognize.distill import Teacher, load_teacher


@dataclass(frozen=True, kw_only=True)
class Classification(Experiment):
    """Training of a classifier on labelled images."""

    data: ImageData
    """Training images."""
    validation: Path | None = None
    """Images to evaluate on while training: folders, a list or tars, read as the training images are."""
    backbone: BackboneConfig = field(default_factory=XCiTConfig)
    """The network."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW, its schedule, layer-wise decay, clipping."""
    train_transform: TrainTransform = field(default_factory=TrainTransform)
    """Augmentation of a training image."""
    eval_transform: EvalTransform = field(default_factory=EvalTransform)
    """Preparation of an image to classify."""
    mixing: Mixing = field(default_factory=Mixing)
    """Mixup and CutMix."""
    label_smoothing: float = 0.1
    """Share of the label spread over all classes."""
    teacher: str | None = None
    """Hard distillation: timm:NAME, torchvision:NAME or a checkpoint."""
    classes: tuple[str, ...] | None = None
    """Class names; by default those of the training images."""

    def __post_init__(self) -> None:
        check_range(self, "label_smoothing", least=0, most=1)

    def prepared(self) -> Self:
        """With the class names read from the training images."""
        return self if self.classes else replace(self, classes=self.train_dataset().classes)

    def build_task(self) -> "ClassificationTask":
        """The network, its losses and metrics, with fresh weights."""
        return ClassificationTask(self)

    def train_dataset(self) -> ImageFiles | TarImages:
        """The training images, augmented.

        Raises:
            VitrailError: they cannot be read or have no labels.
        """
        dataset = self.data.open(self.train_transform.build(), self.classes)
        return _labelled(dataset, f"training images in {self.data.list or self.data.root}")

    def validation_dataset(self) -> Dataset | None:
        """The validation images, prepared as for use.

        Raises:
            VitrailError: they cannot be read, have no labels, or other classes than the training images.
        """
        if self.validation is None:
            return None
        data = self.data.at(self.validation)
        dataset = data.open(self.eval_transform.build(), self.classes)
        return _labelled(dataset, f"validation images in {self.validation}")


def _labelled(dataset: ImageFiles | TarImages, what: str) -> ImageFiles | TarImages:
    if dataset.labels is None:
        raise VitrailError(f"The {what} have no labels; give class folders, or a list or tar shards with labels.")
    return dataset


class ClassificationTask(Task):
    """Cross-entropy against smoothed and mixed labels, and against a teacher's decisions where there is a teacher."""

    def __init__(self, experiment: Classification) -> None:
        super().__init__()
        classes = experiment.classes or ()
        if len(classes) < 2:
            named = f"only the class {classes[0]}" if classes else "no classes"
            raise VitrailError(
                f"The training images have {named}; give a folder with one folder a class, or a list with labels."
            )
        self.experiment = experiment
        self.backbone = experiment.backbone.build(len(classes))
        self.mix = experiment.mixing.build(len(classes))
        # In a tuple, for it belongs neither into checkpoints nor among the parameters.
        self._teacher: tuple[Teacher, ...] = ()

    def phases(self) -> dict[str, Phase]:
        """One phase, `train`."""
        config = self.experiment.optimizer
        if name := self.experiment.teacher:
            transform = self.experiment.train_transform
            statistics = (transform.mean, transform.std)
            teacher = load_teacher(name, self.experiment.classes or (), statistics, transform.size)
            self._teacher = (teacher.to(next(self.parameters()).device),)
        return {"train": Phase(build_optimizer(config, self.backbone), config)}

    def forward(self, batch: LabelledImages, phase: str) -> dict[str, Tensor]:
        """The loss of a training batch, or the logits and labels of an evaluation batch."""
        if phase == "evaluate":
            return {"logits": self.backbone(batch.image).float(), "labels": batch.label}
        images, labels = self.mix(batch.image, batch.label)
        smoothing = self.experiment.label_smoothing
        if not self._teacher:
            return {"loss": F.cross_entropy(self.backbone(images).float(), labels, label_smoothing=smoothing)}
        logits, distilled = self._two_logits(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        distillation = F.cross_entropy(distilled.float(), self._teacher[0](images))
        return {
            "loss": (loss + distillation) / 2,
            "label_loss": loss.detach(),
            "distillation_loss": distillation.detach(),
        }

    def _two_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the labels and for the teacher: DeiT has a head for each, XCiT answers both with one."""
        if isinstance(self.backbone, ViT):
            return self.backbone.distilled_logits(images)
        logits = self.backbone(images)
        return logits, logits

    def metric(self) -> ClassificationMetric:
        """Accuracy and confusion matrix."""
        return ClassificationMetric(len(self.experiment.classes or ()))


class Prediction(NamedTuple):
    """What a classifier says of one file.

    Attributes:
        path: the file.
        classes: the most probable classes, best first, with their probabilities.
        error: why the file could not be read; then `classes` is empty.
    """

    path: Path
    classes: tuple[tuple[str, float], ...]
    error: str | None = None


@dataclass(frozen=True)
class Classifier:
    """A network with all that it takes to use it on a file."""

    model: nn.Module
    """Images [B, 3, H, W], normalised -> logits [B, classes]."""
    classes: tuple[str, ...]
    """Names, in the order of the logits."""
    transform: EvalTransform
    """What its pictures go through."""

    def at_size(self, size: int) -> Self:
        """The same for pictures of `size` pixels a side."""
        return replace(self, transform=replace(self.transform, size=size))

    def optimized(self) -> Self:
        """The same, faster and leaner where the network is an XCiT; it can no longer be trained or explained."""
        return replace(self, model=self.model.optimize_for_inference()) if isinstance(self.model, XCiT) else self

    def predict(self, paths: Iterable[Path], top: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
        """Classifies files, in order; a file that cannot be read gives a prediction that says so."""
        transform = self.transform.build()

        def read(path: Path) -> Tensor | str:
            try:
                return transform(read_image(path))
            except CorruptSample as error:
                return f"Cannot read {path}: {error.reason}"

        paths = iter(paths)
        with ThreadPoolExecutor() as pool:
            while batch := list(islice(paths, batch_size)):
                pictures = list(pool.map(read, batch))
                readable = [picture for picture in pictures if isinstance(picture, Tensor)]
                ranked = iter(self._rank(torch.stack(readable), top) if readable else ())
                for path, picture in zip(batch, pictures, strict=True):
                    yield Prediction(path, (), picture) if isinstance(picture, str) else Prediction(path, next(ranked))

    @torch.inference_mode()
    def _rank(self, images: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
        device = next(self.model.parameters()).device
        probabilities = self.model(images.to(device)).float().softmax(dim=1)
        best = probabilities.topk(min(top, len(self.classes)))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [tuple((self.classes[i], p) for i, p in zip(*row, strict=True)) for row in rows]
