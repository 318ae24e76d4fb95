"""The toy system, and processes of its own for a test that kills."""

import importlib.util
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vitrail.engine.checkpoint import load
from vitrail.errors import VitrailError


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    if "vitrail.toy" not in sys.modules:
        spec = importlib.util.spec_from_file_location("vitrail.toy", Path(__file__).parent / "toy.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["vitrail.toy"] = module
        spec.loader.exec_module(module)
    return sys.modules["vitrail.toy"]


class Forked:
    """Processes that run `work(rank)` beside the test; `world_size` of them find each other as under a launcher."""

    def __init__(self, work: Callable[[int], None], world_size: int, log: Path):
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pids = [self._fork(work, rank, world_size, port) for rank in range(world_size)]

    def _fork(self, work: Callable[[int], None], rank: int, world_size: int, port: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; nothing here waits for them
            pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            if world_size > 1:
                os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            work(rank)
            code = 0
        except VitrailError as error:
            print(f"vitrail: {error}", file=sys.stderr)
            code = error.exit_code
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)

    def kill(self, number: int = signal.SIGKILL) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def ended(self) -> bool:
        """Whether the first process has come to its end."""
        return os.waitid(os.P_PID, self.pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> list[int]:
        """Exit codes, minus the signal's number where one ended it."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


@pytest.fixture
def forked(tmp_path: Path) -> Callable[..., Forked]:
    def start(work: Callable[[int], None], world_size: int = 1) -> Forked:
        return Forked(work, world_size, tmp_path / "log.txt")

    return start


@pytest.fixture(scope="session")
def all_tensors() -> Callable[[Path], dict[str, torch.Tensor]]:
    def read(path: Path) -> dict[str, torch.Tensor]:
        checkpoint = load(path)
        return {
            f"{prefix}.{name}": tensor
            for prefix in ("model", "ema", "optimizer")
            for name, tensor in checkpoint.tensors(prefix).items()
        }

    return read
