"""Evaluation over all processes, each sample once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.utilities import move_data_to_device
from torch import nn

from vitrail.data.loader import Dataset, LoaderConfig, evaluation_batches
from vitrail.engine.checkpoint import open_task
from vitrail.engine.experiment import Loop
from vitrail.engine.processes import launch, seed_all, together, wrap
from vitrail.engine.task import Task
from vitrail.errors import VitrailError


def evaluate(
    fabric: Fabric, network: nn.Module, task: Task, dataset: Dataset, loop: Loop, loader: LoaderConfig
) -> dict[str, float]:
    """The task's metrics over `dataset`; every process must take part, and gets them all.

    Args:
        fabric: launched.
        network: `task` as Fabric wrapped it.
        task: whose phase "evaluate" and metric are used.
        dataset: each of its samples counts once.
        loop: whose micro batch of one process is the batch.
        loader: how samples are read.
    """
    metric = task.metric()
    batch_size = max(1, loop.batch_size // (fabric.world_size * loop.accumulate))
    network.eval()
    with torch.no_grad():
        for number, (batch, counts) in enumerate(_aligned(fabric, dataset, batch_size, loader)):
            seed_all(number, fabric.global_rank)
            outputs = network(fabric.to_device(batch), "evaluate")
            if counts:
                metric.update(**move_data_to_device(outputs, torch.device("cpu")))
    network.train()
    if fabric.world_size == 1:
        return metric.compute()
    metrics: list[Any] | None = [None] * fabric.world_size if fabric.is_global_zero else None
    torch.distributed.gather_object(metric, metrics)

    def compute() -> dict[str, float]:
        if metrics is None:
            return {}
        for other in metrics[1:]:
            metrics[0].merge(other)
        return metrics[0].compute()

    return fabric.broadcast(together(fabric, compute))


def _aligned(fabric: Fabric, dataset: Dataset, batch_size: int, loader: LoaderConfig) -> Iterator[tuple[Any, bool]]:
    """Batches, and whether they count: a process that has run out repeats one that does not, until all have.

    For the processes of a sharded model must run it equally often.
    """

    def batches(rank: int) -> Iterator[Any]:
        return evaluation_batches(
            dataset, batch_size=batch_size, rank=rank, world_size=fabric.world_size, loader=loader
        )

    spare = None
    own = batches(fabric.global_rank)
    while True:
        batch = together(fabric, lambda: next(own, None))
        if fabric.world_size > 1:
            left = torch.tensor(float(batch is not None), device=fabric.device)
            if not torch.as_tensor(fabric.all_reduce(left, reduce_op="sum")).item():
                return
        elif batch is None:
            return
        if batch is None and spare is None:
            spare = next(batch for rank in range(fabric.world_size) for batch in batches(rank))
        spare = batch if batch is not None else spare
        yield spare, batch is not None


def evaluate_checkpoint(
    path: str | Path, dataset: Dataset | None = None, *, ema: bool = True, **loop: Any
) -> dict[str, float]:
    """The metrics of a checkpoint.

    Args:
        path: a checkpoint, or the folder of a run.
        dataset: what to evaluate on; by default the experiment's own validation data.
        ema: evaluate the moving average of the weights where there is one.
        loop: fields of `Loop` that are to differ from the run's: accelerator, devices, precision, batch_size, ...

    Raises:
        VitrailError: the checkpoint cannot be opened, or there is nothing to evaluate on.
    """
    experiment, task = open_task(path, ema)
    if dataset is None:
        dataset = experiment.validation_dataset()
    if dataset is None:
        raise VitrailError(f"The experiment of {path} has no validation data; say what to evaluate on.")
    settings = replace(experiment.loop, **loop)
    fabric = launch(settings)
    return evaluate(fabric, wrap(fabric, task, settings.compile), task, dataset, settings, experiment.loader)
