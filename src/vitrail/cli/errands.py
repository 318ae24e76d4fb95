"""What verbs for many files share: which file goes where, and who does it."""

import argparse
import glob
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from vitrail.errors import FileError, VitrailError

STANDARD = "-"  # names standard input, or standard output


class Errand(NamedTuple):
    """One input and where it goes; None is standard input, or standard output."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What messages call the input."""
        return "standard input" if self.source is None else str(self.source)


@dataclass(frozen=True)
class Outcome:
    """What became of an errand, as a worker process can tell it.

    Attributes:
        said: a line for standard output.
        notes: lines for standard error.
        data: what belongs on standard output instead.
        status: exit status.
    """

    said: str = ""
    notes: tuple[str, ...] = ()
    data: bytes | None = None
    status: int = 0


def plan(arguments: argparse.Namespace, search: Callable[[Path], list[Path]], suffix: str) -> list[Errand]:
    """What is to be read and written, decided before any work begins.

    Args:
        arguments: with `inputs`, `output`, `force`.
        search: the files of a folder that are meant when the folder is named.
        suffix: of outputs whose names are not given.

    Raises:
        VitrailError: an input is missing, or outputs would be lost or written over each other.
    """
    found = [item for name in arguments.inputs for item in expand(name, search)]
    if not found:
        raise FileError(
            f"There is nothing to do in {', '.join(arguments.inputs)}; name files or folders that hold some."
        )
    several = len(found) > 1 or any(Path(name).is_dir() for name in arguments.inputs)
    output = arguments.output
    if several and (output == STANDARD or any(source is None for source, _ in found)):
        raise VitrailError("Standard input and output hold one file each; name one input, or an output folder.")
    if several and output and Path(output).is_file():
        raise VitrailError(f"{output} is a file, and there are {len(found)} inputs; name a folder.")
    errands = [Errand(source, _target(source, below, output, several, suffix)) for source, below in found]
    # Paths are told apart without dots and links, however they were spelled.
    sources = {os.path.realpath(errand.source): errand.name for errand in errands if errand.source}
    written: dict[Path, Errand] = {}
    for errand in errands:
        if errand.target is None:
            continue
        target = errand.target
        rival = written.setdefault(Path(os.path.realpath(target.parent), target.name), errand)
        if rival is not errand:
            raise VitrailError(
                f"{rival.name} and {errand.name} would both be written to {target}; do them apart, with -o."
            )
        if errand.source and target.exists() and target.samefile(errand.source):
            raise VitrailError(f"{errand.name} would be written over itself; name another output by -o.")
        if other := sources.get(os.path.realpath(target)):
            raise VitrailError(f"{errand.name} would be written over the input {other}; name an output folder by -o.")
        if target.exists() and not arguments.force:
            raise VitrailError(f"{target} is there already; write over it with --force, or name another by -o.")
    return errands


def _target(source: Path | None, below: Path, output: str | None, several: bool, suffix: str) -> Path | None:
    if output == STANDARD or (source is None and not output):
        return None
    if output is None:
        assert source is not None
        return source.with_suffix(suffix)
    if several or Path(output).is_dir() or output.endswith(("/", os.sep)):
        return Path(output, below).with_suffix(suffix)
    return Path(output)


def expand(name: str, search: Callable[[Path], list[Path]]) -> list[tuple[Path | None, Path]]:
    """The files that an argument names, each with where it belongs below an output folder."""
    path = Path(name)
    if name == STANDARD:
        return [(None, Path("standard_input"))]
    if path.is_dir():
        return [(file, file.relative_to(path)) for file in search(path)]
    if path.exists():
        return [(path, Path(path.name))]
    if matches := sorted(glob.glob(name, recursive=True)):  # noqa: PTH207, Path.glob refuses absolute patterns
        return [item for match in matches for item in expand(match, search)]
    raise FileError(f"There is no file {name}; name files, folders, quoted patterns, or - for standard input.")


def attempt(tool: Any, work: Callable[[Any, Errand], Outcome], errand: Errand) -> Outcome:
    """An errand's outcome; what is wrong with one file does not keep the others."""
    try:
        return work(tool, errand)
    except VitrailError as error:
        said = str(error)
        return Outcome(notes=(said if errand.name in said else f"{errand.name}: {said}",), status=error.exit_code)


@contextmanager
def outcomes(
    errands: Sequence[Errand], work: Callable[[Any, Errand], Outcome], take_tool: Callable[[], Any], jobs: int
) -> Iterator[Iterator[Outcome]]:
    """The outcomes in the order of the errands.

    Args:
        errands: what to do.
        work: does one of them with a tool.
        take_tool: gets the tool, once in each process.
        jobs: how many processes share the errands and the cores; 1: this one alone.

    Raises:
        VitrailError: a process was killed.
    """
    if jobs == 1:
        tool = take_tool()
        yield (attempt(tool, work, errand) for errand in errands)
        return
    start = partial(_start_worker, take_tool, max(1, (os.cpu_count() or 1) // jobs))
    # Each in a pool of its own: Python 3.11's fails, in a thread of its own, if one dies while it starts the next.
    workers = [ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start) for _ in range(jobs)]
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def begin(worker: ProcessPoolExecutor) -> None:
        worker.submit(bool).add_done_callback(lambda _: idle.put(worker))

    def hand_out(errand: Errand) -> Outcome:
        worker = idle.get()
        try:
            return worker.submit(_attempt_in_worker, work, errand).result()
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(jobs)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # by the workers, too, until they have begun
    try:
        for worker in workers:
            begin(worker)
        signal.signal(signal.SIGINT, interrupt)
        yield threads.map(hand_out, errands)
    except BrokenProcessPool:
        raise VitrailError(
            "A worker process was killed, perhaps for want of memory; try again with fewer --jobs."
        ) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers end what they are at; to leave them would hang the exit
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.shutdown()
        signal.signal(signal.SIGINT, interrupt)


_worker_tool: Any = None
_worker_stopped = False


def _start_worker(take_tool: Callable[[], Any], threads: int) -> None:
    import torch

    global _worker_tool
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, _stop_worker)
    torch.set_num_threads(threads)
    _worker_tool = take_tool()


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it has ended, killed perhaps: nobody else would."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _stop_worker(*_: Any) -> None:
    """Ends what is being written, and begins nothing more."""
    global _worker_stopped
    _worker_stopped = True


def _attempt_in_worker(work: Callable[[Any, Errand], Outcome], errand: Errand) -> Outcome:
    return Outcome() if _worker_stopped else attempt(_worker_tool, work, errand)
