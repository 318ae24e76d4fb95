"""DINO: a student must say of small crops what a slow average of itself says of large ones (Caron et al., 2021)."""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitrail.backbones import BackboneConfig
from vitrail.backbones.features import Backbone
from vitrail.backbones.vit import ViTConfig
from vitrail.config import check_range
from vitrail.data.augmentation import Transform
from vitrail.data.loader import Dataset
from vitrail.engine.optim import build_optimizer
from vitrail.engine.task import Phase, Task
from vitrail.layers.blocks import StochasticDepth
from vitrail.metrics.pretext import PretextMetric
from vitrail.pretrain.pretraining import Pretraining, label_of
from vitrail.pretrain.views import View


@dataclass(frozen=True)
class Crops:
    """The views of one picture."""

    first: View = field(default_factory=lambda: View(scale=(0.4, 1.0), jitter=0.8, greyscale=0.2, blur=1.0))
    """The first large one."""
    second: View = field(
        default_factory=lambda: View(scale=(0.4, 1.0), jitter=0.8, greyscale=0.2, blur=0.1, solarize=0.2)
    )
    """The second large one."""
    small: View = field(default_factory=lambda: View(size=96, scale=(0.05, 0.4), jitter=0.8, greyscale=0.2, blur=0.5))
    """All small ones."""
    count: int = 8
    """How many small ones there are; 0: none."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=0)

    def build(self) -> "Cutter":
        """A picture (RGB) -> its views."""
        return Cutter(self)


class Cutter:
    """Cuts pictures as `Crops` says."""

    def __init__(self, crops: Crops) -> None:
        self.large = (crops.first.build(), crops.second.build())
        self.small = (crops.small.build(),) * crops.count
        self.none = torch.empty(0, 3, crops.small.size, crops.small.size)

    def __call__(self, picture: Image.Image) -> "Views":
        """A picture (RGB) -> its views."""
        large, small = ([view(picture) for view in views] for views in (self.large, self.small))
        return Views(torch.stack(large), torch.stack(small) if small else self.none)


class Views(NamedTuple):
    """A sample, or a batch of them.

    Attributes:
        large: [2, 3, S, S], or [B, 2, 3, S, S].
        small: [n, 3, s, s], or [B, n, 3, s, s].
    """

    large: Tensor
    small: Tensor


class ViewedImages:
    """A data set of views; `pictures` are its samples' images before any transform."""

    def __init__(self, pictures: Dataset, crops: Crops) -> None:
        self.pictures, self.cut = pictures, crops.build()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Views:
        return self.cut(self.pictures[index].image)


@dataclass(frozen=True, kw_only=True)
class DINO(Pretraining):
    """Pre-training by DINO, of a ViT or an XCiT (Section 3.5.1)."""

    backbone: BackboneConfig = field(default_factory=ViTConfig)
    """The network to pre-train."""
    crops: Crops = field(default_factory=Crops)
    """The views of a picture."""
    outputs: int = 65536
    """Of the projection head, K; some thousand suffice for small data."""
    hidden: int = 2048
    """Channels of the head's two hidden layers."""
    bottleneck: int = 256
    """Channels before the head's last layer."""
    student_temperature: float = 0.1
    """Of the student's softmax."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Of the teacher's softmax, first and last."""
    teacher_warmup: float = 0.1
    """Share of the run in which the teacher's temperature goes from the first to the last."""
    momentum: float = 0.996
    """Of the teacher's weights at the start; it goes to 1 along a half cosine."""
    center_momentum: float = 0.9
    """Of the running mean of the teacher's outputs."""
    frozen: float = 0.01
    """Share of the run in which the head's last layer stays as it is."""

    def __post_init__(self) -> None:
        check_range(self, "outputs", "hidden", "bottleneck", least=1)
        check_range(self, "student_temperature", "teacher_temperature", above=0)
        check_range(self, "teacher_warmup", "momentum", "center_momentum", "frozen", least=0, most=1)

    def build_task(self) -> "DINOTask":
        """Student and teacher, alike, with fresh weights."""
        return DINOTask(self)

    def train_dataset(self) -> Dataset:
        """The views of the training images."""
        return ViewedImages(replace(self.data, labelled=False).open(_as_it_is), self.crops)

    def validation_dataset(self) -> Dataset | None:
        """The held-out images and views of them, with labels where there are some."""
        pictures = self._held_out(_as_it_is)
        return pictures and HeldOutViews(pictures, self.crops, self.eval_transform.build())


def _as_it_is(picture: Any) -> Any:
    return picture


class HeldOutView(NamedTuple):
    """A sample, or a batch of them.

    Attributes:
        large: [2, 3, S, S], or [B, 2, 3, S, S].
        small: [n, 3, s, s], or [B, n, 3, s, s].
        image: [3, H, W], or [B, 3, H, W], the picture prepared for use.
        label: the number of the class, or [B]; -1 where it is not known.
    """

    large: Tensor
    small: Tensor
    image: Tensor
    label: int | Tensor


class HeldOutViews(ViewedImages):
    """Views of held-out pictures, and the pictures prepared for use by `transform`."""

    def __init__(self, pictures: Dataset, crops: Crops, transform: Transform) -> None:
        super().__init__(pictures, crops)
        self.transform = transform

    def __getitem__(self, index: int) -> HeldOutView:  # type: ignore[override]
        sample = self.pictures[index]
        return HeldOutView(*self.cut(sample.image), self.transform(sample.image), label_of(sample))


class Head(nn.Module):
    """Three layers, scaling to unit length, and a linear layer whose rows have unit length: [B, d] -> [B, K]."""

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(outputs, bottleneck))
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, tokens: Tensor, frozen: bool = False) -> Tensor:
        """[B, d] -> [B, K]; frozen: the gradient to the last layer is zero."""
        prototypes = self.prototypes.detach() + 0 * self.prototypes if frozen else self.prototypes
        return F.normalize(self.layers(tokens), dim=1) @ F.normalize(prototypes, dim=1).mT


class Student(nn.Module):
    """What is trained: a backbone and its head."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class DINOTask(Task):
    """Cross-entropy between what the teacher says of large views and the student of all others.

    Attributes:
        student: what is trained.
        backbone: the teacher's, which is kept after pre-training.
        head: the teacher's.
        center: [K], the running mean of the teacher's outputs.
        seen: [K], the mean of the teacher's outputs in each micro batch of the present step, added up.
        progress: share of the run that is done.
    """

    center: Tensor
    seen: Tensor
    progress: Tensor

    def __init__(self, experiment: DINO) -> None:
        super().__init__()
        self.experiment = experiment
        network = experiment.backbone.build()
        head = Head(network.width, experiment.hidden, experiment.bottleneck, experiment.outputs)
        self.student = Student(network, head)
        self.backbone = copy.deepcopy(network)
        for module in self.backbone.modules():
            if isinstance(module, StochasticDepth):
                module.rate = 0.0  # the teacher is not regularised
        self.head = copy.deepcopy(head)
        self.backbone.requires_grad_(False)
        self.head.requires_grad_(False)
        self.register_buffer("center", torch.zeros(experiment.outputs))
        self.register_buffer("seen", torch.zeros(experiment.outputs))
        self.register_buffer("progress", torch.zeros(()))
        self._micro_batches = 0

    def phases(self) -> dict[str, Phase]:
        """One phase, `train`, of the student."""
        config = self.experiment.optimizer
        return {"train": Phase(build_optimizer(config, self.student), config)}

    def forward(self, batch: Any, phase: str) -> dict[str, Any]:
        """The loss of a training batch, or what the metric takes of an evaluation batch."""
        if phase == "evaluate":
            losses, entropies, _ = self._compare(batch)
            # Not called the loss: teacher and temperature move, so that it may rise in a run that learns.
            terms = {"teacher_loss": losses, "teacher_entropy": entropies}
            features = self.backbone.forward_features(batch.image).class_token.float()
            return {"terms": terms, "features": features, "labels": batch.label}
        losses, entropies, wanted = self._compare(batch)
        self.seen += wanted.mean(dim=0)
        self._micro_batches += 1
        return {"loss": losses.mean(), "teacher_entropy": entropies.mean()}

    def _compare(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and entropies of the targets, [B] each, in nats, and what the teacher said, [2 B, K]."""
        settings = self.experiment
        large, small = (views.transpose(0, 1) for views in (batch.large, batch.small))  # [views, B, 3, S, S]
        with torch.no_grad():
            wanted = self.head(self.backbone.forward_features(large.flatten(0, 1)).class_token).float()
            first, last = settings.teacher_temperature
            warm = (self.progress / settings.teacher_warmup).clamp(max=1) if settings.teacher_warmup else 1.0
            targets = ((wanted - self.center) / (first + (last - first) * warm)).softmax(dim=1).chunk(2)
        frozen = bool(self.progress < settings.frozen)
        said = list(self._say(large.flatten(0, 1), frozen).chunk(2))
        if len(small):
            said += self._say(small.flatten(0, 1), frozen).chunk(len(small))
        losses = [
            -(target * view.log_softmax(dim=1)).sum(dim=1)
            for number, target in enumerate(targets)
            for other, view in enumerate(said)
            if number != other
        ]
        entropies = torch.stack([torch.special.entr(target).sum(dim=1) for target in targets])
        return torch.stack(losses).mean(dim=0), entropies.mean(dim=0), wanted

    def _say(self, images: Tensor, frozen: bool) -> Tensor:
        tokens = self.student.backbone.forward_features(images).class_token
        return self.student.head(tokens, frozen).float() / self.experiment.student_temperature

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Moves the teacher towards the student, and the center towards what the teacher said in this step."""
        self.center.lerp_(self.seen / self._micro_batches, 1 - self.experiment.center_momentum)
        self.seen.zero_()
        self._micro_batches = 0
        momentum = 1 - (1 - self.experiment.momentum) * (math.cos(math.pi * step / steps) + 1) / 2
        for teacher, student in ((self.backbone, self.student.backbone), (self.head, self.student.head)):
            for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 1 - momentum)
        self.progress.fill_((step + 1) / steps)

    def metric(self) -> PretextMetric:
        """What the views tell of each other, nearest neighbours."""
        return PretextMetric()
