"""Several processes do what one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitrail.data.loader import LoaderConfig
from vitrail.engine.checkpoint import load
from vitrail.engine.curves import read_curves
from vitrail.engine.experiment import Loop
from vitrail.engine.loop import fit
from vitrail.engine.processes import seed_all

LOOP = Loop(steps=6, batch_size=8, accelerator="cpu", log_every=2, evaluate_every=1.0, ema=0.9)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one_to_rounding(toy, forked, tmp_path, strategy):
    experiment = toy.Toy(loop=LOOP, loader=LoaderConfig(workers=0))
    one = forked(lambda rank: fit(experiment, tmp_path / "one"))
    assert one.wait() == [0], one.log.read_text()
    shared = replace(experiment, loop=replace(LOOP, devices=2, strategy=strategy))
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


def test_seeding_depends_on_every_number_and_reaches_every_generator():
    import random

    def draws(*numbers):
        seed_all(*numbers)
        return torch.rand(()).item(), np.random.rand(), random.random()

    assert draws(0, 1, 2) == draws(0, 1, 2)
    others = [draws(0, 1, 2), draws(0, 1, 3), draws(0, 2, 1), draws(1, 1, 2), draws(0, 1)]
    assert all(len({other[generator] for other in others}) == len(others) for generator in range(3))
