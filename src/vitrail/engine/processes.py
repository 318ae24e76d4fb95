"""Devices, precision and processes, through Lightning Fabric."""

import inspect
import logging
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from vitrail.engine.experiment import Loop
from vitrail.errors import VitrailError, from_system

T = TypeVar("T")


class Autocast(MixedPrecision):
    """Automatic mixed precision that leaves the batch alone: targets and pictures keep their precision."""

    def convert_input(self, data: Any) -> Any:
        """Nothing is converted."""
        return data


def launch(loop: Loop) -> Fabric:
    """Starts the processes that `loop` asks for; each of them returns.

    On one machine this runs the same command line again for every further device. Processes that torchrun or SLURM
    have started are taken as they are.

    Raises:
        VitrailError: this machine does not have what is asked for, or two choices do not go together.
    """
    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    accelerator = _accelerator(loop)
    devices, nodes = _processes(loop, accelerator)
    _heed_the_launcher()
    strategy: Strategy | str = "auto"
    if loop.strategy == "fsdp":
        strategy = ModelParallelStrategy(_shard, data_parallel_size=devices * nodes, tensor_parallel_size=1)
    elif devices * nodes > 1 or loop.strategy == "ddp":
        # A phase, or a batch of one kind, may leave parameters unused. Looking for them also keeps the order in which
        # gradients are sent the same from the first step on, without which a resumed run would not be bit-identical.
        # Buffers are ours to average; later versions of torch have another name for leaving them alone.
        known = inspect.signature(DistributedDataParallel).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync_buffers: False}
        # Of depthwise kernels, whose two descriptions mean the same place in memory.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        strategy = DDPStrategy(find_unused_parameters=True, **options)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        plugins=[_precision(loop, accelerator)],
    )
    fabric.launch()
    return fabric


_LAUNCHER = "VITRAIL_LAUNCHER"
"""In the environment: the process that starts those for further devices."""


def _heed_the_launcher() -> None:
    """Ends this process with the one that started it for a further device, which it might wait for for ever."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[_LAUNCHER] = str(os.getpid())
    launcher = int(os.environ.get(_LAUNCHER, os.getpid()))
    if launcher == os.getpid() or "LOCAL_WORLD_SIZE" in os.environ:  # torchrun ends its own
        return

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def stop(fabric: Fabric, error: VitrailError) -> NoReturn:
    """Ends all processes, which must have come to the same conclusion; only the first one says why."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # whose threads may abort a process that ends before them
    if fabric.is_global_zero:
        raise error
    raise SystemExit(0)


def together(fabric: Fabric, act: Callable[[], T], otherwise: Callable[[], None] = lambda: None) -> T:
    """What `act` returns; where it fails in one process, all end, and the first says why.

    Args:
        fabric: launched; all processes must come here.
        act: what each does, alone.
        otherwise: what all do before they end.

    Raises:
        VitrailError: `act` raised one or an OSError, here or elsewhere; in the first process, for the others exit.
    """
    error: VitrailError | None = None
    try:
        result = act()
    except VitrailError as problem:
        error = problem
    except OSError as problem:
        error = from_system(problem)
    if fabric.world_size > 1:
        group = _gloo_group(torch.distributed.group.WORLD)
        failed = torch.tensor(fabric.world_size if error is None else fabric.global_rank)
        torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MIN, group)
        if failed < fabric.world_size:
            said = [None if error is None else str(error)]
            torch.distributed.broadcast_object_list(said, int(failed), group)
            error = error or VitrailError(said[0])
    if error is not None:
        otherwise()
        stop(fabric, error)
    return result


def at_first(fabric: Fabric, act: Callable[[], T]) -> T | None:
    """What `act` returns in the first process, for which the others wait; where it fails, all end as in `together`."""
    return together(fabric, lambda: act() if fabric.is_global_zero else None)


@cache
def _gloo_group(_: Any) -> Any:
    """All processes, over gloo and not over the devices' own backend: to agree must not wait for a device."""
    return torch.distributed.new_group(backend="gloo")


def wrap(fabric: Fabric, module: nn.Module, compiled: bool) -> nn.Module:
    """Moves `module` to its device, shares it among the processes and compiles it, as was asked for at `launch`."""
    if isinstance(fabric.strategy, DDPStrategy):
        module = _WithSpare(module)
    return fabric.setup_module(torch.compile(module) if compiled else module)  # type: ignore[arg-type]


class _WithSpare(nn.Module):
    """A module and a parameter that nothing uses: looking for unused ones, DDP would warn if it found none."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.spare = nn.Parameter(torch.zeros(()))

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def _accelerator(loop: Loop) -> str:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if loop.accelerator == "auto":
        return next(name for name, there in available.items() if there)
    if not available[loop.accelerator]:
        raise VitrailError(
            f"This machine has no {loop.accelerator} device that PyTorch can use; choose the accelerator auto or cpu."
        )
    return loop.accelerator


def _processes(loop: Loop, accelerator: str) -> tuple[int, int]:
    """Devices a machine, and machines."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices, int(os.environ["WORLD_SIZE"]) // devices
    if loop.nodes > 1 and not {"MASTER_ADDR", "SLURM_JOB_ID"} & os.environ.keys():
        raise VitrailError(
            f"To train on {loop.nodes} machines, start each by torchrun or SLURM, or set MASTER_ADDR, MASTER_PORT and "
            "NODE_RANK in the environment of each."
        )
    there = torch.cuda.device_count() if accelerator == "cuda" else 1
    devices = there if loop.devices == "auto" else loop.devices
    if devices < 1 or loop.nodes < 1:
        raise VitrailError(f"There must be at least one device and one node, not {devices} and {loop.nodes}.")
    if accelerator != "cpu" and devices > there:
        raise VitrailError(f"This machine has {there} {accelerator} devices, not {devices}; ask for fewer devices.")
    if accelerator == "cpu" and devices > max(2, cores := os.cpu_count() or 1):  # two anywhere: to try how several do
        raise VitrailError(f"This machine has {cores} cores, too few for {devices} processes; ask for fewer devices.")
    return devices, loop.nodes


def _precision(loop: Loop, accelerator: str) -> Precision:
    if loop.precision == "16-mixed" and (loop.strategy == "fsdp" or accelerator == "cpu"):
        place = "CPUs" if accelerator == "cpu" else "fsdp"
        raise VitrailError(f"float16 is not for {place}; choose the precision bf16-mixed or 32-true.")
    return Precision() if loop.precision == "32-true" else Autocast(loop.precision, accelerator)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards the members of every module list (the blocks of a network) one by one, and the rest together."""
    containers = (nn.ModuleList, nn.ModuleDict)
    for part in reversed(list(module.modules())):  # from the inside out
        if isinstance(part, nn.ModuleList):
            for block in part:
                if not isinstance(block, containers):
                    fully_shard(block, mesh=mesh["data_parallel"], reshard_after_forward=True)
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
    return module


def seed_all(*numbers: int) -> None:
    """Seeds the global generators of torch (on every device), numpy and random by a tuple of numbers >= 0."""
    words = np.random.SeedSequence(numbers).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words)
    random.seed(words.tobytes())


@torch.no_grad()
def average_buffers(fabric: Fabric, module: nn.Module) -> None:
    """Gives every process the mean over the processes of each floating-point persistent buffer."""
    if fabric.world_size == 1:
        return
    names = {name for name, _ in module.named_buffers()}
    buffers = [value for name, value in module.state_dict().items() if name in names and value.is_floating_point()]
    if not buffers:
        return
    # In float64 the sum of equal float32 numbers is exact, and so is its quotient: constants stay what they are.
    flat = torch.cat([buffer.flatten().double() for buffer in buffers])
    torch.distributed.all_reduce(flat)
    means = (flat / fabric.world_size).split([buffer.numel() for buffer in buffers])
    for buffer, values in zip(buffers, means, strict=True):
        buffer.copy_(values.view_as(buffer))


class StopRequest:
    """Ctrl-C and SIGTERM, remembered until the end of the step; the second time they act at once. A context manager.

    Worker processes that read data take no notice, and so outlive a signal to the whole group until the main process
    has no more need of them.
    """

    def __init__(self, fabric: Fabric):
        self._asked = False
        self._previous: dict[int, Any] = {}
        self._group = _gloo_group(torch.distributed.group.WORLD) if fabric.world_size > 1 else None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, self._previous[number])

    def anywhere(self) -> bool:
        """Whether any process has been asked to stop; all processes must ask together."""
        if self._group is None:
            return self._asked
        flag = torch.tensor([int(self._asked)])
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, self._group)
        return bool(flag.item())
