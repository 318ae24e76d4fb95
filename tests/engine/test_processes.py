"""Several processes do what one does."""

import contextlib
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.config import to_json
from vitrail.data.loader import LoaderConfig
from vitrail.engine.checkpoint import load
from vitrail.engine.curves import read_curves
from vitrail.engine.experiment import Loop
from vitrail.engine.loop import fit
from vitrail.engine.processes import launch, seed_all
from vitrail.errors import VitrailError

LOOP = Loop(steps=6, batch_size=8, accelerator="cpu", log_every=2, evaluate_every=1.0, ema=0.9)
SKIP = LoaderConfig(workers=0, on_corrupt="skip")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("adversary", "accumulate"), [(False, 1), (True, 2)])
def test_two_processes_are_one_to_rounding(toy, forked, tmp_path, strategy, adversary, accumulate):
    experiment = toy.Toy(loop=LOOP, loader=LoaderConfig(workers=0), adversary=adversary)
    one = forked(lambda rank: fit(experiment, tmp_path / "one"))
    assert one.wait() == [0], one.log.read_text()
    shared = replace(experiment, loop=replace(LOOP, devices=2, strategy=strategy, accumulate=accumulate))
    two = forked(lambda rank: fit(shared, tmp_path / "two"), world_size=2)
    assert two.wait() == [0, 0], two.log.read_text()
    checkpoints = [load(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("one", "two")]
    for prefix in ("model", "ema", "optimizer"):
        expected, found = (checkpoint.tensors(prefix) for checkpoint in checkpoints)
        assert expected.keys() == found.keys() and expected
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    curves = [read_curves(tmp_path / name) for name in ("one", "two")]
    assert curves[0].keys() == curves[1].keys()
    for name, points in curves[0].items():
        assert curves[1][name] == [(step, pytest.approx(value, rel=1e-4, abs=1e-6)) for step, value in points]
    assert all(value == 7 for _, value in curves[1]["validation/samples"])  # each of seven counts once


def test_the_launcher_and_a_request_to_stop_one_of_its_processes(toy, tmp_path):
    """As from a shell: one command, which starts the second process itself; only the first one is told to stop."""
    loop = replace(LOOP, steps=100_000, devices=2, checkpoint_every=5)
    experiment = toy.Toy(loop=loop, loader=LoaderConfig(workers=0))
    (tmp_path / "toy.json").write_text(json.dumps(to_json(experiment)))
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    command = [sys.executable, "-W", "error", toy.__file__, tmp_path / "run", tmp_path / "toy.json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while not last.exists() and process.poll() is None:
                time.sleep(0.05)
            process.terminate()
            _, said = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    step = load(last).header.step
    assert said.count(f"vitrail: Stopped after step {step} of 100000; go on with --resume in {tmp_path / 'run'}.") == 1
    assert "Warning" not in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"damaged": (3,)}, r"Cannot read point 3: it is damaged; mend or remove it, or skip .*"),
        ({"validation_damaged": (1,)}, r"Cannot read point 1: .*"),
        ({"validation_damaged": tuple(range(7)), "loader": SKIP}, r"There is nothing to measure\."),
        ({"loop": replace(LOOP, batch_size=5, devices=2)}, r"A batch of 5 cannot be shared by 2 processes .*"),
        ({"loop": replace(LOOP, monitor="beauty", devices=2)}, r"There is no metric beauty to monitor; .*"),
    ],
)
def test_what_one_process_meets_ends_all_with_one_sentence(toy, forked, tmp_path, changes, sentence):
    experiment = replace(
        toy.Toy(loop=replace(LOOP, devices=2), loader=LoaderConfig(workers=0), size=11, noise=0.0), **changes
    )
    two = forked(lambda rank: fit(experiment, tmp_path / "run"), world_size=2)
    assert two.wait() == [1, 0], two.log.read_text()
    assert re.fullmatch(
        rf"vitrail: {sentence}", *(line for line in two.log.read_text().splitlines() if "vitrail" in line)
    )
    assert "Traceback" not in two.log.read_text()


@pytest.mark.parametrize("writer", ["run.checkpoints.save", "loop.Curves.add", "loop.Curves"])
def test_a_full_disk_that_only_the_first_process_writes_to_ends_all(toy, forked, tmp_path, monkeypatch, writer):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "run")

    monkeypatch.setattr(f"vitrail.engine.{writer}", fail)
    experiment = toy.Toy(loop=replace(LOOP, devices=2), loader=LoaderConfig(workers=0))
    two = forked(lambda rank: fit(experiment, tmp_path / "run"), world_size=2)
    assert two.wait() == [1, 0], two.log.read_text()
    log = [line for line in two.log.read_text().splitlines() if not line.startswith("step ")]
    assert log == ["vitrail: run: No space left on device; mend that and try again."]


def test_a_damaged_file_costs_no_step_and_can_be_skipped_afterwards(toy, forked, tmp_path):
    """The second of two processes meets it; the checkpoint is of the step before."""
    experiment = toy.Toy(
        loop=replace(LOOP, devices=2, batch_size=2, evaluate_every=100.0), loader=LoaderConfig(workers=0), size=24
    )
    fifth = int(np.random.default_rng((0, 0)).permutation(24)[4 * 2 + 1])  # of the order of seed 0
    damaged = replace(experiment, damaged=(fifth,))
    two = forked(lambda rank: fit(damaged, tmp_path / "run"), world_size=2)
    assert two.wait() == [1, 0], two.log.read_text()
    assert load(tmp_path / "run" / "checkpoints" / "last.safetensors").header.step == 4
    skipping = replace(damaged, loader=SKIP)
    two = forked(lambda rank: fit(skipping, tmp_path / "run", resume=True), world_size=2)
    assert two.wait() == [0, 0], two.log.read_text()


def test_a_process_whose_samples_are_all_skipped_takes_part(toy, forked, tmp_path):
    """In an evaluation; the first process has the damaged one of two."""
    loop = replace(LOOP, devices=2, strategy="fsdp")
    experiment = toy.Toy(loop=loop, loader=SKIP, validation_size=2, validation_damaged=(0,))
    two = forked(lambda rank: fit(experiment, tmp_path / "run"), world_size=2)
    assert two.wait() == [0, 0], two.log.read_text()
    assert all(value == 1 for _, value in read_curves(tmp_path / "run")["validation/samples"])


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process's children are listed")
def test_no_process_outlives_the_one_that_started_it(toy, tmp_path):
    """Not even one that waits for it in vain, before training."""
    experiment = toy.Toy(loop=replace(LOOP, devices=2), loader=LoaderConfig(workers=0))
    (tmp_path / "toy.json").write_text(json.dumps(to_json(experiment)))
    command = [sys.executable, toy.__file__, tmp_path / "run", tmp_path / "toy.json"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (started := children.read_text().split()):
            time.sleep(0.01)
        process.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{started[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{started[0]}").exists()


def test_several_machines_must_know_each_other(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(VitrailError, match=r"^To train on 2 machines, start each by torchrun or SLURM, or set MASTER_"):
        launch(replace(LOOP, nodes=2))


@pytest.mark.slow
def test_compiled_is_eager_to_rounding(toy, forked, tmp_path):
    experiment = toy.Toy(loop=LOOP, loader=LoaderConfig(workers=0))
    eager = fit(experiment, tmp_path / "eager")
    compiled = replace(experiment, loop=replace(LOOP, compile=True))
    (tmp_path / "toy.json").write_text(json.dumps(to_json(compiled)))
    run = tmp_path / "compiled"
    subprocess.run([sys.executable, toy.__file__, run, tmp_path / "toy.json"], check=True)
    expected, found = (load(folder).tensors("model") for folder in (eager.folder, run))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(found[name], value) for name, value in expected.items())  # else nothing was compiled


def test_more_processes_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with pytest.raises(VitrailError, match="has 4 cores, too few for 5 processes; ask for fewer devices"):
        launch(replace(LOOP, devices=5))


def test_seeding_depends_on_every_number_and_reaches_every_generator():
    def draws(*numbers):
        seed_all(*numbers)
        return torch.rand(()).item(), np.random.rand(), random.random()

    assert draws(0, 1, 2) == draws(0, 1, 2)
    others = [draws(0, 1, 2), draws(0, 1, 3), draws(0, 2, 1), draws(1, 1, 2), draws(0, 1)]
    assert all(len({other[generator] for other in others}) == len(others) for generator in range(3))
