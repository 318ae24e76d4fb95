"""Hard distillation: a convolutional teacher's decision as a second label (Section 3.5.1, after DeiT)."""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from vitrail.engine.checkpoint import open_task
from vitrail.errors import VitrailError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

_IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Teacher(nn.Module):
    """A frozen classifier that names a class for pictures normalised for the student.

    Args:
        network: [B, 3, H, W] -> [B, classes].
        student, teacher: mean and deviation per channel that pictures are normalised by; where they differ, the
            pictures are normalised anew, since a teacher that sees the wrong range is silently wrong.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, student: Statistics, teacher: Statistics) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        (student_mean, student_deviation), (mean, deviation) = (
            torch.tensor(s).view(2, -1, 1, 1) for s in (student, teacher)
        )
        self.register_buffer("scale", student_deviation / deviation, persistent=False)
        self.register_buffer("shift", (student_mean - mean) / deviation, persistent=False)

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher is always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalised for the student -> the class of each picture, [B] int64."""
        return self.network(images * self.scale + self.shift).argmax(dim=1)


def load_teacher(name: str, classes: Sequence[str], student: Statistics, size: int = 224) -> Teacher:
    """The teacher `timm:NAME`, `torchvision:NAME` (pretrained weights of that library) or a checkpoint of Vitrail.

    Args:
        name: of the teacher.
        classes: names of the classes, in the order of the labels.
        student: mean and deviation per channel that pictures are normalised by.
        size: pixels a side of the pictures that it will be asked about.

    Raises:
        VitrailError: there is no such teacher, its weights cannot be had, or it knows other classes than `classes`, as
            far as it tells: published teachers tell their number alone.
    """
    library, colon, model = name.partition(":")
    names = None
    try:
        if colon and library == "timm":
            import timm

            network = timm.create_model(model, pretrained=True)
            expected = timm.data.resolve_data_config(model=network)
            statistics = (expected["mean"], expected["std"])
        elif colon and library == "torchvision":
            network = torchvision.models.get_model(model, weights="DEFAULT")
            statistics = _IMAGENET
        else:
            experiment, task = open_task(name)
            if not getattr(experiment, "classes", None):
                raise VitrailError(f"The teacher {name} is a {type(experiment).__name__}; give a run of a classifier.")
            network, transform = task.backbone, experiment.eval_transform
            statistics = (transform.mean, transform.std)
            names = experiment.classes
    except VitrailError:
        raise
    except Exception as error:  # whatever either library raises for an unknown name or without a network
        raise VitrailError(
            f"The teacher {name} cannot be loaded ({str(error).splitlines()[0]}); "
            "give timm:NAME, torchvision:NAME or the checkpoint of a classifier."
        ) from error
    teacher = Teacher(network, student, statistics)
    try:
        with torch.no_grad():
            known = teacher.network(torch.zeros(1, 3, size, size)).shape[1]
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip("!.")
        raise VitrailError(
            f"The teacher {name} takes no pictures of {size} pixels ({reason}); train at its size, or choose another."
        ) from None
    if known != len(classes) or (names is not None and tuple(names) != tuple(classes)):
        differ = f"knows {known} classes and the data has {len(classes)}"
        if known == len(classes):
            differ = "knows other classes than the data has, or the same in another order"
        raise VitrailError(f"The teacher {name} {differ}; distil from one that was trained on the same classes.")
    return teacher
