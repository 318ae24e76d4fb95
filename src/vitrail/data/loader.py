"""From a data set to batches: batch k of a run depends on (seed, k) alone.

A data set is any object with `__len__` and `__getitem__(int)` whose samples PyTorch's `default_collate` can stack,
by custom NamedTuples. Training reads an endless stream of samples, one permutation of the data set after the other;
global batch k is samples k B to (k + 1) B of the stream, whatever the number of processes, of micro batches and of
workers. Each sample is made under its own seed, so that augmentations may draw from the global generators.
"""

import hashlib
import logging
import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from vitrail.config import check_choices, check_range
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError

log = logging.getLogger(__name__)


class Dataset(Protocol):
    """A map-style data set; samples are NamedTuples of tensors and numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class LoaderConfig:
    """How samples are read; no field but `repeats` and `on_corrupt` changes what is read."""

    workers: int | None = None
    """Processes that read and augment; 0 reads in the main process; by default this process's share of the cores,
    at most 8."""
    repeats: int = 1
    """How often each image of an epoch is augmented anew (repeated augmentation); an epoch keeps its length."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """What to do with a file that cannot be read: stop, or name it, count it and read another one instead."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "workers", least=0)
        check_range(self, "repeats", least=1)


class Draw(NamedTuple):
    """One sample to make: number `item` of the data set, under the random seed of `position` in the stream."""

    item: int
    position: int


class Batches:
    """An iterator over batches that remembers which files were skipped.

    Attributes:
        corrupt: path -> reason of every file that was skipped so far.
    """

    def __init__(self, batches: Iterator[tuple[Any, dict[str, str]] | VitrailError]):
        self._batches = batches
        self.corrupt: dict[str, str] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            item = next(self._batches)
            if isinstance(item, VitrailError):
                self._batches = iter(())  # the workers end now
                try:
                    raise item
                finally:
                    del item  # else the error, its traceback and this frame would keep each other
            batch, corrupt = item
            for path, reason in corrupt.items():
                if path not in self.corrupt:
                    self.corrupt[path] = reason
                    log.warning("Skipped %s: %s (%d skipped so far)", path, reason, len(self.corrupt))
            if batch is not None:  # None: every sample of an evaluation batch was skipped
                return batch


def training_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    steps: int,
    start: int = 0,
    seed: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    world_size: int = 1,
    loader: LoaderConfig = LoaderConfig(),
) -> Batches:
    """The micro batches of process `rank` for steps `start` to `steps` - 1, `accumulate` a step.

    Starting at step `start` costs the same for every `start`: a resumed run seeks. A corrupt sample that is skipped
    is replaced by the next readable one of the data set, so that all batches have the same shape.

    Args:
        dataset: what to read.
        batch_size: the global batch: samples a step over all processes and micro batches.
        steps: the length of the whole run.
        start: the first step to yield.
        seed: of the order and of every sample's augmentation, at least 0.
        accumulate: micro batches a step.
        rank: this process, 0 to `world_size` - 1.
        world_size: the number of processes.
        loader: workers, repeated augmentation, corrupt files.

    Raises:
        VitrailError: the data set is empty, or smaller than `loader.repeats`, or `batch_size` is not divisible by
            `world_size * accumulate`; while iterating, a sample is corrupt and `loader.on_corrupt` is "stop".
    """
    parts = world_size * accumulate
    if batch_size < 1 or batch_size % parts:
        raise VitrailError(
            f"A batch of {batch_size} cannot be shared by {world_size} processes in {accumulate} micro batches each; "
            f"choose a batch size that is a multiple of {parts}."
        )
    size = _size(dataset)
    if loader.repeats > size:
        raise VitrailError(f"Of {size} images {loader.repeats} repeats would leave one; choose fewer repeats.")
    plan = _TrainingPlan(size, seed, loader.repeats, batch_size, range(start, steps), accumulate, rank, world_size)
    samples = _Samples(dataset, seed, loader.on_corrupt, replace=True)
    return _read(samples, plan, _workers(loader, world_size))


def evaluation_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    loader: LoaderConfig = LoaderConfig(),
) -> Batches:
    """Every sample once, in order: process `rank` reads samples `rank`, `rank + world_size`, ...

    The last batch may be smaller; corrupt samples that are skipped are left out. Of processes, the last ones may have
    one batch fewer.

    Args:
        dataset: what to read.
        batch_size: samples a batch of this process.
        rank: this process, 0 to `world_size` - 1.
        world_size: the number of processes.
        loader: workers and corrupt files; repeats mean nothing here.

    Raises:
        VitrailError: the data set is empty; while iterating, a sample is corrupt and `loader.on_corrupt` is "stop".
    """
    if batch_size < 1:
        raise VitrailError(f"The batch size is {batch_size}; it must be 1 or more.")
    plan = _EvaluationPlan(range(rank, _size(dataset), world_size), batch_size)
    return _read(_Samples(dataset, 0, loader.on_corrupt, replace=False), plan, _workers(loader, world_size))


@dataclass(frozen=True)
class _TrainingPlan:
    """Which samples each micro batch of one process consists of."""

    size: int
    seed: int
    repeats: int
    batch_size: int
    steps: range
    accumulate: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        length = self.batch_size // (self.world_size * self.accumulate)
        # What is augmented several times lies apart: mixup would blend neighbours that are the same image.
        dealt = np.argsort(np.arange(self.batch_size) % self.repeats, kind="stable")
        for step in self.steps:
            for micro in range(self.accumulate):
                part = micro * self.world_size + self.rank
                places = dealt[part * length : (part + 1) * length].tolist()
                yield [self._draw(step * self.batch_size + place) for place in places]

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.size)
        return Draw(int(_permutation(self.size, self.seed, epoch)[place // self.repeats]), position)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


@dataclass(frozen=True)
class _EvaluationPlan:
    indices: range
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [Draw(index, index) for index in self.indices[first : first + self.batch_size]]


class _Sample(NamedTuple):
    """A sample, or None where it was skipped, and what was found corrupt on the way."""

    value: Any
    corrupt: dict[str, str]


@dataclass(frozen=True)
class _Samples:
    """The data set as workers see it: indexed by draws, its errors returned, for what workers raise loses its form."""

    dataset: Dataset
    seed: int
    on_corrupt: Literal["stop", "skip"]
    replace: bool

    def __getitem__(self, draw: Draw) -> _Sample | VitrailError:
        corrupt: dict[str, str] = {}
        candidates = len(self.dataset) if self.replace else 1
        for offset in range(candidates):
            try:
                with seeded(self.seed, draw.position):
                    return _Sample(self.dataset[(draw.item + offset) % len(self.dataset)], corrupt)
            except CorruptSample as error:
                if self.on_corrupt == "stop":
                    return error
                corrupt[error.path] = error.reason
            except VitrailError as error:
                return error
        if self.replace:
            path, reason = next(iter(corrupt.items()))
            return VitrailError(
                f"None of the {len(self.dataset)} samples can be read, beginning with {path}: {reason}."
            )
        return _Sample(None, corrupt)


def _collate(samples: Sequence[_Sample | VitrailError]) -> tuple[Any, dict[str, str]] | VitrailError:
    corrupt: dict[str, str] = {}
    values = []
    for sample in samples:
        if isinstance(sample, VitrailError):
            return sample
        corrupt |= sample.corrupt
        if sample.value is not None:
            values.append(sample.value)
    return (default_collate(values) if values else None), corrupt


@contextmanager
def seeded(seed: int, position: int) -> Iterator[None]:
    """Seeds the global CPU generators of torch, random and numpy by (seed, position), and restores them after."""
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=40).digest()
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    # torch.manual_seed would seed the generators of accelerators too, which nothing here restores.
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    random.seed(int.from_bytes(digest[8:24], "little"))
    np.random.seed(np.frombuffer(digest[24:], dtype=np.uint32))  # other bytes: both are the same Mersenne Twister
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _size(dataset: Dataset) -> int:
    if size := len(dataset):
        return size
    raise VitrailError("The data set is empty: it has no sample to read; give a folder or a list with files.")


def _workers(loader: LoaderConfig, world_size: int) -> int:
    if loader.workers is not None:
        return loader.workers
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // processes))


def _read(samples: _Samples, plan: _TrainingPlan | _EvaluationPlan, workers: int) -> Batches:
    workers = min(workers, len(plan))
    with warnings.catch_warnings():
        # More workers than cores may be wanted (slow disks); and Python >= 3.12 warns of any fork beside threads,
        # which is safe here: workers start no threads that they share with this process, nor take its locks.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", ".*use of fork\\(\\) may lead to deadlocks", DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: starting workers must not advance the global one
            worker_init_fn=_heed_the_parent_alone,
        )
        with _signals_wait():  # in workers from the beginning, so that PyTorch's threads there do not heed them either
            return Batches(iter(loader))


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach this thread after the block, and what it starts within only where it unblocks them."""
    if not hasattr(signal, "sigtimedwait"):  # by which workers hear of them nevertheless
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_the_parent_alone(worker: int) -> None:
    """Keeps a worker process from Ctrl-C, and from a SIGTERM that schedulers send to the whole group: the parent may
    still want its batches, to end a step. A SIGTERM of the parent's own ends it, and so does the parent's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigtimedwait"):
        return

    def wait() -> None:
        while parent.is_alive():
            received = signal.sigtimedwait({signal.SIGTERM}, 5)
            if received and received.si_pid == parent.pid:
                break
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # again: starting to spawn, Python unblocks it
    threading.Thread(target=wait, daemon=True).start()
