"""The seam between what is trained and how: a `Task` knows losses and metrics, the loop knows everything else."""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from vitrail.engine.optim import OptimizerConfig
from vitrail.metrics.metric import Metric


class Phase(NamedTuple):
    """One optimizer and the configuration that its schedule and clipping follow."""

    optimizer: Optimizer
    config: OptimizerConfig


class Task(nn.Module):
    """The networks of one system, their losses and their metrics.

    Nothing about devices, processes, precision, accumulation or checkpoints is ever in a task. What it remembers from
    step to step is its parameters and persistent buffers: they alone are saved. After each step the loop averages
    floating-point buffers over the processes, so that running means (batch norm, centers) are those of the whole
    batch. With several phases, only the phase's own parameters take gradients.
    """

    def phases(self) -> dict[str, Phase]:
        """What one step consists of, in order: most tasks have one phase, an adversarial one has two.

        Called once, after the task has been moved to its device and wrapped.
        """
        raise NotImplementedError

    def forward(self, batch: Any, phase: str) -> dict[str, Tensor]:
        """In a training phase: `loss`, a scalar, and other scalars to log, detached; the same names in every step.

        In the phase "evaluate": whatever `metric().update` takes, first dimension the samples of the batch.
        """
        raise NotImplementedError

    def after_step(self, step: int, steps: int) -> None:
        """Called when step `step` (0-based) of `steps` is done: momentum teachers, dead codes."""

    def metric(self) -> Metric:
        """A fresh accumulator for one evaluation."""
        raise NotImplementedError
