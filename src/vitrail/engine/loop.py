"""The training loop, for every system.

What a run computes in step k depends on its configuration, k and the state after step k - 1 alone: batches are sought,
not drawn in turn, and dropout is seeded anew for every micro batch. A run that is killed at any moment and resumed
therefore ends bit-identical to one that was not, given the same devices and versions, wherever the operations
themselves are deterministic: on CPUs all are; on GPUs convolutions are told to be, and most others are.

With the same batch size, any number of processes and of micro batches gives the same gradients to rounding, as long as
the samples of a batch do not meet: batch norms and contrastive losses see one micro batch of one process.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Subset

from vitrail.data.loader import training_batches
from vitrail.engine.curves import Curves, read_curves, turning_point
from vitrail.engine.evaluate import evaluate
from vitrail.engine.experiment import Experiment
from vitrail.engine.optim import set_schedules
from vitrail.engine.processes import StopRequest, at_first, average_buffers, launch, seed_all, stop, together, wrap
from vitrail.engine.progress import Report
from vitrail.engine.run import Interrupted, Run, occupy, open_run
from vitrail.engine.task import Task


@dataclass(frozen=True)
class Result:
    """What a run leaves."""

    folder: Path
    """With `config.json`, `metrics.csv`, `tensorboard/` and `checkpoints/`."""
    last: Path
    """The checkpoint of the last step."""
    best: Path | None
    """The checkpoint that was best by the monitored metric."""
    metrics: dict[str, float]
    """Of the evaluation at the end; empty without validation data."""
    steps: int
    """Optimizer steps, all told."""
    seconds: float
    """Time that this call took."""
    images_per_second: float
    """Training samples a second in this call, without evaluations and checkpoints; 0 if nothing was left to do."""


def fit(
    experiment: Experiment,
    folder: str | Path,
    resume: bool = False,
    initialize: Callable[[Task], None] | None = None,
) -> Result:
    """Trains.

    Args:
        experiment: what to train, on what, and how.
        folder: where the run's files go.
        resume: go on from the last checkpoint in `folder`; start if there is none yet.
        initialize: given the task on a fresh start, to load weights into it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
        VitrailError: the folder holds a run and `resume` is off, or one of another configuration; the loss or a
            gradient is not finite; data cannot be read; a device is missing.
    """
    begun = time.monotonic()
    loop = experiment.loop
    experiment = experiment.prepared()
    train, validation = experiment.train_dataset(), experiment.validation_dataset()
    fabric = launch(loop)  # what is wrong with the data has been said by now, once
    previous = open_run(fabric, experiment, Path(folder), resume)

    def build() -> Task:
        seed_all(loop.seed)
        task = experiment.build_task()
        if initialize and previous is None:
            initialize(task)
        return task

    task = together(fabric, build)
    network: Any = wrap(fabric, task, loop.compile)
    run = Run(fabric, experiment, Path(folder), task)
    optimizers: dict[str, Any] = {name: fabric.setup_optimizers(phase.optimizer) for name, phase in run.phases.items()}
    if previous:
        together(fabric, partial(run.restore, previous))

    epoch = len(train) / loop.batch_size  # in steps; may be a fraction
    steps = loop.steps or max(1, round(loop.epochs * epoch))
    batches = together(
        fabric,
        partial(
            training_batches,
            train,
            batch_size=loop.batch_size,
            steps=steps,
            start=run.step,
            seed=loop.seed,
            accumulate=loop.accumulate,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            loader=experiment.loader,
        ),
    )
    if loop.monitor and validation is not None and not run.step:
        here_and_there = range(0, len(validation), max(1, len(validation) // loop.batch_size))
        few: Subset[Any] = Subset(cast(Any, validation), here_and_there)  # enough to know the metrics' names
        run.check_monitor(evaluate(fabric, network, task, few, loop, replace(experiment.loader, workers=0)))
    occupy(fabric, experiment, run.folder, fresh=previous is None)
    begin = run.step
    rates: dict[str, float] = {}
    throughput = Throughput()

    # The first process alone writes them, and what it meets there, such as a full disk, ends all.
    curves = at_first(fabric, lambda: Curves(run.folder, run.step))

    def draw(act: Callable[[Curves], None]) -> None:
        together(fabric, lambda: act(curves) if curves else None)

    with (
        curves or nullcontext(),
        Report(run.step, steps, silent=not fabric.is_global_zero) as report,
        StopRequest(fabric) as request,
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):

        def keep() -> None:
            if run.step > begin:
                run.check()
                draw(Curves.flush)  # before the checkpoint, which says that what came before it is on the disk
                run.save()

        for step in range(begin, steps):
            micro_batches = together(fabric, lambda: [next(batches) for _ in range(loop.accumulate)], otherwise=keep)
            for order, (name, phase) in enumerate(run.phases.items()):
                optimizer = optimizers[name]
                rates[name] = set_schedules(
                    phase.optimizer, phase.config, step, steps=steps, steps_per_epoch=epoch, batch_size=loop.batch_size
                )
                run.focus(phase)
                optimizer.zero_grad()
                for micro, batch in enumerate(micro_batches):
                    seed_all(loop.seed, step, order, micro, fabric.global_rank)
                    with fabric.no_backward_sync(network, enabled=micro < loop.accumulate - 1):
                        terms = network(fabric.to_device(batch), name)
                        fabric.backward(terms["loss"] / loop.accumulate)
                    run.remember(name, terms, weight=1 / loop.accumulate)
                # Without a limit nothing is clipped, but the norm is known, and with it whether all is finite.
                limit = phase.config.clip or math.inf
                norm = fabric.clip_gradients(network, optimizer, max_norm=limit, error_if_nonfinite=False)
                optimizer.step()
                run.remember(name, {"gradient_norm": torch.as_tensor(norm)})
            average_buffers(fabric, task)
            with torch.no_grad():
                task.after_step(step, steps)
            if run.average:
                run.average.update()
            run.step = done = step + 1
            throughput.samples += loop.batch_size
            report.advance(done)

            stopping = request.anywhere()
            logging = done % loop.log_every == 0 or done == steps
            evaluating = validation is not None and (_passes(done, loop.evaluate_every * epoch) or done == steps)
            keeping = loop.keep_every is not None and done % loop.keep_every == 0
            saving = stopping or keeping or done % loop.checkpoint_every == 0 or done == steps
            if logging or evaluating or saving:
                run.check()
            if logging:
                points, speed = run.points(rates), throughput.lap()
                draw(partial(Curves.add, step=done, values=points, clock={"images_per_second": speed}))
                report.figures(done, points, speed)
            with throughput.paused():
                if evaluating and validation is not None:
                    with run.averaged():
                        metrics = evaluate(fabric, network, task, validation, loop, experiment.loader)
                    run.evaluated(metrics)
                    points = {f"validation/{name}": value for name, value in metrics.items()}
                    draw(partial(Curves.add, step=done, values=points))
                    report.metrics(done, metrics)
                    if curves:
                        held_out = read_curves(run.folder).get("validation/loss", [])  # a resumed run's from the start
                        if (turned := turning_point(held_out)) is not None:
                            report.overfitting(turned, held_out)
                if saving:
                    keep()
            if stopping and done < steps:
                stop(fabric, Interrupted(f"Stopped after step {done} of {steps}; go on with --resume in {folder}."))
        report.end(run.last_path, run.best_path if run.best is not None else None)

    return Result(
        folder=run.folder,
        last=run.last_path,
        best=run.best_path if run.best is not None else None,
        metrics=run.metrics,
        steps=steps,
        seconds=time.monotonic() - begun,
        images_per_second=throughput.mean(),
    )


class Throughput:
    """Samples a second.

    Attributes:
        samples: trained on since the last lap.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._since = time.monotonic()
        self._samples, self._seconds = 0, 0.0

    def lap(self) -> float:
        """Samples a second since the last lap."""
        now = time.monotonic()
        samples, seconds = self.samples, now - self._since
        self.samples, self._since = 0, now
        self._samples, self._seconds = self._samples + samples, self._seconds + seconds
        return samples / seconds

    def mean(self) -> float:
        """Samples a second over all laps."""
        return self._samples / self._seconds if self._seconds else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before


def _passes(step: int, interval: float) -> bool:
    """Whether step `step` (counted from 1) is the first at or after a multiple of `interval` steps."""
    nearly = 1e-9  # 7 / 1.4 is a little less than 5
    return math.floor(step / interval + nearly) > math.floor((step - 1) / interval + nearly)
