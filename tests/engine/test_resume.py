"""Killed at any moment and resumed, a run ends with the bits of one that was not."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitrail.data.loader import LoaderConfig
from vitrail.engine import checkpoint as checkpoints
from vitrail.engine import processes
from vitrail.engine.experiment import Loop
from vitrail.engine.loop import fit
from vitrail.engine.run import Interrupted

LOOP = Loop(
    steps=30,
    batch_size=8,
    accelerator="cpu",
    accumulate=2,
    ema=0.9,
    log_every=4,
    evaluate_every=2.0,
    checkpoint_every=3,
    keep_every=10,
    monitor="top1",
)


def toy_with(toy, **fields):
    """Everything that could make two runs differ, all at once."""
    return toy.Toy(loop=LOOP, loader=LoaderConfig(workers=0), dropout=0.2, batch_norm=True, **fields)


def assert_same_run(one: Path, other: Path, all_tensors) -> None:
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    names = [path.name for path in sorted((one / "checkpoints").iterdir())]
    assert [path.name for path in sorted((other / "checkpoints").iterdir())] == names
    assert "step_00000020.safetensors" in names and "best.safetensors" in names
    for name in names:
        expected, found = (all_tensors(folder / "checkpoints" / name) for folder in (one, other))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
        headers = [checkpoints.load(folder / "checkpoints" / name).header for folder in (one, other)]
        assert headers[0] == headers[1]


def identity(path: Path) -> tuple[int, int]:
    """Differs between a file and the one that takes its place."""
    if not path.exists():
        return (0, 0)
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


@pytest.mark.parametrize(
    ("world_size", "strategy", "adversary"), [(1, "auto", True), (2, "ddp", False), (2, "fsdp", False)]
)
def test_killed_again_and_again(toy, forked, all_tensors, tmp_path, world_size, strategy, adversary):
    experiment = toy_with(toy, adversary=adversary)
    experiment = replace(experiment, loop=replace(LOOP, devices=world_size, strategy=strategy))
    whole = forked(lambda rank: fit(experiment, tmp_path / "whole"), world_size)
    assert whole.wait() == [0] * world_size, whole.log.read_text()

    last = tmp_path / "killed" / "checkpoints" / "last.safetensors"
    moments = random.Random(world_size)
    kills = 0
    while True:
        checkpoints_to_see = (
            moments.randint(2, 4) if kills else 0
        )  # the first kill comes before there is anything to resume
        run = forked(lambda rank: fit(experiment, tmp_path / "killed", resume=True), world_size)
        seen = [identity(last)]
        while len(seen) <= checkpoints_to_see and not run.ended():
            seen += [identity(last)] if identity(last) != seen[-1] else []
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        run.kill()
        code, *_ = run.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, run.log.read_text()
        kills += 1
    assert kills >= 2
    assert_same_run(tmp_path / "whole", tmp_path / "killed", all_tensors)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_killed_while_a_checkpoint_is_written(toy, forked, all_tensors, tmp_path, monkeypatch, share):
    experiment = toy_with(toy)
    whole = forked(lambda rank: fit(experiment, tmp_path / "whole"))
    assert whole.wait() == [0], whole.log.read_text()

    plain, calls = checkpoints.save_file, []

    def die(tensors, path, metadata):
        plain(tensors, path, metadata)
        calls.append(path)
        if len(calls) == 7:
            os.truncate(path, int(share * Path(path).stat().st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(checkpoints, "save_file", die)
    killed = forked(lambda rank: fit(experiment, tmp_path / "killed"))
    assert killed.wait() == [-signal.SIGKILL]
    monkeypatch.undo()
    (half,) = (path for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith("."))
    assert half.exists()
    resumed = forked(lambda rank: fit(experiment, tmp_path / "killed", resume=True))
    assert resumed.wait() == [0], resumed.log.read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "killed", all_tensors)


def test_a_resumed_run_goes_on_with_its_gradient_scaler(toy, tmp_path, monkeypatch):
    """float16 is for GPUs; its scaler, which doubles every second step here, is the same on a CPU."""
    monkeypatch.setattr(
        processes,
        "_precision",
        lambda *_: processes.Autocast("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=2)),
    )
    experiment = toy.Toy(
        loop=replace(LOOP, steps=9, checkpoint_every=5, precision="16-mixed"), loader=LoaderConfig(workers=0)
    )
    whole = fit(experiment, tmp_path / "whole")
    # Four doublings and no overflow would have brought it to 2^20: it did overflow, which did not end the run.
    assert checkpoints.load(whole.last).header.loop["scaler"]["scale"] < 2**20
    plain = toy.ToyTask.after_step

    def interrupt(task, step, steps):
        plain(task, step, steps)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(toy.ToyTask, "after_step", interrupt)
    with pytest.raises(Interrupted):
        fit(experiment, tmp_path / "run")
    resumed = fit(experiment, tmp_path / "run", resume=True)
    assert resumed.last.read_bytes() == whole.last.read_bytes()
