"""A tiny system with everything that could make two runs differ: augmentation, dropout, batch norm."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import from_json
from vitrail.data.corrupt import CorruptSample
from vitrail.engine.experiment import Experiment
from vitrail.engine.loop import fit
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase, Task
from vitrail.errors import VitrailError


class Point(NamedTuple):
    features: Tensor
    label: int


@dataclass
class Points:
    """`size` points of three classes, which `noise` augments; sample `poisoned` has a feature that is not finite, and
    those of `damaged` cannot be read."""

    size: int
    noise: float = 0.0
    poisoned: int | None = None
    damaged: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Point:
        if index in self.damaged:
            raise CorruptSample(f"point {index}", "it is damaged")
        label = index % 3
        own = torch.Generator().manual_seed(index)
        center = 2.0 * F.one_hot(torch.tensor(label), 6)
        features = torch.randn(6, generator=own) + center + self.noise * torch.randn(6)
        return Point(features * torch.nan if index == self.poisoned else features, label)


class Accuracy:
    """Keeps labels, so that a sample that counts twice is noticed."""

    def __init__(self) -> None:
        self.right: list[bool] = []

    def update(self, *, logits: Tensor, labels: Tensor) -> None:
        self.right += (logits.argmax(dim=1) == labels).tolist()

    def merge(self, other: "Accuracy") -> None:
        self.right += other.right

    def compute(self) -> dict[str, float]:
        if not self.right:
            raise VitrailError("There is nothing to measure.")
        return {"top1": sum(self.right) / len(self.right), "samples": float(len(self.right))}


@dataclass(frozen=True, kw_only=True)
class Toy(Experiment):
    size: int = 20
    noise: float = 0.1
    poisoned: int | None = None
    validation_size: int | None = 7
    damaged: tuple[int, ...] = ()
    validation_damaged: tuple[int, ...] = ()
    dropout: float = 0.0
    batch_norm: bool = False
    adversary: bool = False
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-2, lr_batch_size=None, warmup_epochs=1.0)
    )

    def build_task(self) -> "ToyTask":
        return ToyTask(self)

    def train_dataset(self) -> Points:
        return Points(self.size, self.noise, self.poisoned, self.damaged)

    def validation_dataset(self) -> Points | None:
        return None if self.validation_size is None else Points(self.validation_size, damaged=self.validation_damaged)


class ToyTask(Task):
    def __init__(self, experiment: Toy):
        super().__init__()
        self.experiment = experiment
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(6, 6),
                nn.BatchNorm1d(6) if experiment.batch_norm else nn.LayerNorm(6),
                nn.GELU(),
                nn.Dropout(experiment.dropout),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(6, 3)
        self.critic = nn.Linear(3, 1) if experiment.adversary else None
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))

    def phases(self) -> dict[str, Phase]:
        config = self.experiment.optimizer
        if self.critic is None:
            return {"train": Phase(build_optimizer(config, self), config)}
        network = nn.ModuleList([self.blocks, self.head])
        sgd = OptimizerConfig(name="sgd", lr=1e-2, lr_batch_size=None, warmup_epochs=0)
        return {
            "generator": Phase(build_optimizer(config, network), config),
            "critic": Phase(build_optimizer(sgd, self.critic), sgd),
        }

    def forward(self, batch: Point, phase: str) -> dict[str, Tensor]:
        features = batch.features
        for block in self.blocks:
            features = features + block(features)
        logits = self.head(features)
        if phase == "evaluate":
            return {"logits": logits, "labels": batch.label}
        if phase == "critic":
            return {"loss": self.critic(logits).square().mean()}
        loss = F.cross_entropy(logits, batch.label)
        if self.critic is not None:
            loss = loss - 0.1 * self.critic(logits).mean()
        return {"loss": loss, "logit_size": logits.detach().abs().mean()}

    def after_step(self, step: int, steps: int) -> None:
        self.steps_seen += 1

    def metric(self) -> Accuracy:
        return Accuracy()


def main() -> None:
    """`toy.py FOLDER CONFIGURATION [resume]`, as a command line would call the loop."""
    experiment = from_json(json.loads(Path(sys.argv[2]).read_text()))
    try:
        fit(experiment, sys.argv[1], resume="resume" in sys.argv)
    except VitrailError as error:
        print(f"vitrail: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


# Configurations are found again by a name below `vitrail`.
Toy.__module__ = "vitrail.toy"
sys.modules["vitrail.toy"] = sys.modules[__name__]

if __name__ == "__main__":
    main()
