"""A run and its folder: what is remembered from step to step, and how it comes to the disk and back."""

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from lightning_fabric import Fabric
from torch import Tensor

from vitrail.config import Json, to_json
from vitrail.engine import checkpoint as checkpoints
from vitrail.engine.checkpoint import Checkpoint, Header
from vitrail.engine.ema import MovingAverage
from vitrail.engine.experiment import Experiment
from vitrail.engine.processes import at_first, stop, together
from vitrail.engine.task import Phase, Task
from vitrail.engine.window import Window
from vitrail.errors import VitrailError
from vitrail.files import remove, remove_unfinished, write_text

# What may differ when a run is resumed: how the same steps are carried out and reported. A run that is resumed on
# other devices, or in other micro batches, ends equal to rounding only.
MAY_CHANGE = {
    *(f"loop.{name}" for name in ("accelerator", "devices", "nodes", "strategy", "accumulate", "compile")),
    *(f"loop.{name}" for name in ("log_every", "checkpoint_every", "keep_every")),
    "loader.workers",
    "loader.on_corrupt",
}


class Interrupted(VitrailError):  # noqa: N818 (a request, not an error)
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint written."""

    exit_code = 130


def open_run(fabric: Fabric, experiment: Experiment, folder: Path, resume: bool) -> Checkpoint | None:
    """Opens the checkpoint to go on from, if any.

    Raises:
        VitrailError: the folder holds a run and `resume` is off, or one of another configuration.
    """
    last = folder / "checkpoints" / "last.safetensors"

    def check() -> None:
        if refusal := _refusal(folder, last, to_json(experiment), resume):
            raise VitrailError(refusal)

    # The first alone: the others may come late and find what this one has written.
    at_first(fabric, check)
    return together(fabric, lambda: checkpoints.load(last)) if fabric.broadcast(last.exists()) else None


def occupy(fabric: Fabric, experiment: Experiment, folder: Path, fresh: bool) -> None:
    """Makes the run's folder, which from now on holds a run.

    Called when all else is ready to start: what fails before leaves nothing behind.

    Args:
        fabric: launched.
        experiment: what the run is.
        folder: its folder.
        fresh: it starts anew: what a run that was killed before its first checkpoint left is deleted.

    Raises:
        VitrailError: the folder cannot be made or written to.
    """

    def make() -> None:
        checkpoint_folder = folder / "checkpoints"
        for place in (folder, checkpoint_folder):
            remove_unfinished(place)  # what a killed run was writing
        if fresh:
            remove((checkpoint_folder / "best.safetensors", *checkpoint_folder.glob("step_*.safetensors")))
        write_text(folder / "config.json", json.dumps(to_json(experiment), indent=2) + "\n")

    at_first(fabric, make)


def _refusal(folder: Path, last: Path, configuration: Json, resume: bool) -> str | None:
    if not resume and (last.exists() or (folder / "config.json").exists()):
        return f"The folder {folder} already holds a run; go on with it by --resume, or choose another folder."
    if not last.exists():
        if (folder / "metrics.csv").exists() and not (folder / "config.json").exists():
            return f"{folder / 'metrics.csv'} is of no run, and one would overwrite it; choose another folder."
        return None
    before, now = _flat(checkpoints.load(last).header.configuration), _flat(configuration)
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if changed := [name for name in changed if name not in MAY_CHANGE]:
        listed = ", ".join(f"{name} ({before.get(name)!r}, now {now.get(name)!r})" for name in changed)
        return f"The run in {folder} has another configuration: {listed}; set it as it was, or choose another folder."
    return None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON as dotted names and values."""
    if isinstance(value, dict) and value:
        return {key: item for part in value for key, item in _flat(value[part], f"{name}.{part}".lstrip(".")).items()}
    return {name: value}


class Run:
    """The state of a run.

    Attributes:
        step: optimizer steps done.
        phases: the task's.
        average: the moving average of the weights, if one is kept.
        window: the scalars since the last point of the curves.
        metrics: of the latest evaluation.
        best: the best value of the monitored metric.
    """

    def __init__(self, fabric: Fabric, experiment: Experiment, folder: Path, task: Task):
        self.fabric, self.experiment, self.folder, self.task = fabric, experiment, folder, task
        self.loop = experiment.loop
        self.step = 0
        self.phases = task.phases()
        self.average = None if self.loop.ema is None else MovingAverage(task, self.loop.ema)
        self.window = Window(fabric)
        self.metrics: dict[str, float] = {}
        self.best: float | None = None

    @property
    def last_path(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / "checkpoints" / "last.safetensors"

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best evaluation."""
        return self.folder / "checkpoints" / "best.safetensors"

    def focus(self, phase: Phase) -> None:
        """Of several phases, leaves gradients only to the parameters of this one, which others may have too."""
        if len(self.phases) > 1:
            for one in (*self.phases.values(), phase):
                for group in one.optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(one is phase)

    def _prefix(self, name: str) -> str:
        return f"train/{name}/" if len(self.phases) > 1 else "train/"

    def remember(self, name: str, terms: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds scalars of the phase `name` in the present step to the window."""
        prefix = self._prefix(name)
        self.window.add(self.step, {prefix + term: value for term, value in terms.items()}, weight)

    def points(self, rates: dict[str, float]) -> dict[str, float]:
        """The points of the training curves since the last ones: means, and the learning rates of the last step."""
        learning_rates = {f"{self._prefix(name)}learning_rate": rate for name, rate in rates.items()}
        return self.window.close() | learning_rates

    def check(self) -> None:
        """Collects the window; ends the run if a loss or a gradient was not finite.

        With float16, a gradient may be infinite: the scaler leaves such a step out.
        """
        scaled = self.loop.precision == "16-mixed"
        for step, values in self.window.collect().items():
            watched = [value for name, value in values.items() if not (scaled and name.endswith("/gradient_norm"))]
            if not all(map(math.isfinite, watched)):
                self._diverged(step + 1, {name.removeprefix("train/"): value for name, value in values.items()})

    def _diverged(self, step: int, values: dict[str, float]) -> NoReturn:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        kept = f"the last good checkpoint is {self.last_path}" if self.last_path.exists() else "none was saved"
        stop(
            self.fabric,
            VitrailError(
                f"Training left the finite numbers in step {step} ({terms}); {kept}; start anew with a "
                "lower learning rate, clipped gradients or the precision 32-true."
            ),
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The task with its moving average, where one is kept, in the place of its weights."""
        with self.average.applied() if self.average else nullcontext():
            yield

    def check_monitor(self, metrics: Collection[str]) -> None:
        """Ends the run if the monitored metric is not among these names."""
        if self.loop.monitor is not None and self.loop.monitor not in metrics:
            known = ", ".join(metrics)
            stop(
                self.fabric, VitrailError(f"There is no metric {self.loop.monitor} to monitor; choose one of {known}.")
            )

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Takes note of an evaluation, and saves the best checkpoint if this is the best.

        Raises:
            VitrailError: the monitored metric is not among `metrics`, or the loss is not a number.
        """
        if math.isnan(metrics.get("loss", 0.0)):
            self._diverged(self.step, {f"validation {name}": value for name, value in metrics.items()})
        self.metrics = metrics
        if self.loop.monitor is None:
            return
        self.check_monitor(metrics)
        value = metrics[self.loop.monitor]
        better = self.best is None or (value > self.best if self.loop.mode == "max" else value < self.best)
        if math.isfinite(value) and better:
            self.best = value
            self._write(self.best_path, self._weights())

    def save(self) -> None:
        """Writes the last checkpoint, and beside it the one to keep if this step is one."""
        tensors = self._weights()
        for name, phase in self.phases.items():
            for key, value in checkpoints.optimizer_tensors(phase.optimizer, self.task).items():
                tensors[f"optimizer.{name}.{key}"] = value
        if self.loop.keep_every and self.step % self.loop.keep_every == 0:
            kept = self.folder / "checkpoints" / f"step_{self.step:08}.safetensors"
            self._write(kept, tensors)  # first: a run killed in between goes on from before it, and writes it again
        self._write(self.last_path, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to where `save` was called."""
        memory = checkpoint.header.loop
        self.step, self.metrics, self.best = checkpoint.header.step, checkpoint.header.metrics, memory["best"]
        self.window.restore(memory["window"])
        self.fabric.strategy.precision.load_state_dict(memory["scaler"])
        if self.average:
            checkpoints.load_module(self.task, checkpoint.tensors("ema"), checkpoint.path)
            self.average.reset()
        checkpoints.load_module(self.task, checkpoint.tensors("model"), checkpoint.path)
        for name, phase in self.phases.items():
            checkpoints.load_optimizer(phase.optimizer, self.task, checkpoint.tensors(f"optimizer.{name}"))

    def _weights(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in checkpoints.module_tensors(self.task).items()}
        if self.average:
            with self.average.applied():
                # Cloned: what is on the CPU already would change back with the module.
                averages = checkpoints.module_tensors(self.task)
                tensors |= {f"ema.{name}": value.clone() for name, value in averages.items()}
        return tensors

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        header = Header(
            step=self.step,
            configuration=to_json(self.experiment),
            metrics=self.metrics,
            loop={
                "best": self.best,
                "window": self.window.state(),
                "scaler": self.fabric.strategy.precision.state_dict(),
            },
        )
        at_first(self.fabric, lambda: checkpoints.save(path, header, tensors))
