import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.config import from_json
from vitrail.data.loader import LoaderConfig, training_batches
from vitrail.engine.checkpoint import load, open_task
from vitrail.engine.curves import read_curves
from vitrail.engine.evaluate import evaluate_checkpoint
from vitrail.engine.experiment import Loop
from vitrail.engine.loop import _passes, fit
from vitrail.engine.optim import OptimizerConfig, learning_rate, set_schedules
from vitrail.engine.processes import seed_all
from vitrail.engine.run import Interrupted
from vitrail.errors import VitrailError

LOOP = Loop(steps=6, batch_size=8, accelerator="cpu", log_every=2, checkpoint_every=4, evaluate_every=1.0)


@pytest.fixture
def experiment(toy):
    return toy.Toy(loop=LOOP, loader=LoaderConfig(workers=0))


def reference(experiment, steps: int) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """The same training in plain PyTorch: one process, whole batches. The task, and its state after each step."""
    loop = experiment.loop
    seed_all(loop.seed)
    task = experiment.build_task()
    (phase,) = task.phases().values()
    data = experiment.train_dataset()
    states = []
    batches = training_batches(data, batch_size=loop.batch_size, steps=steps, seed=loop.seed, loader=experiment.loader)
    for step, batch in enumerate(batches):
        set_schedules(
            phase.optimizer,
            phase.config,
            step,
            steps=steps,
            steps_per_epoch=len(data) / loop.batch_size,
            batch_size=loop.batch_size,
        )
        phase.optimizer.zero_grad()
        seed_all(loop.seed, step, 0, 0, 0)
        task(batch, "train")["loss"].backward()
        if phase.config.clip:
            # In the optimizer's order: a bias before a batch norm has no gradient but rounding, which Adam makes large.
            parameters = [parameter for group in phase.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, phase.config.clip)
        phase.optimizer.step()
        task.after_step(step, steps)
        states.append({name: value.clone() for name, value in task.state_dict().items()})
    return task, states


@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_loop_is_plain_training(experiment, tmp_path: Path, clip):
    experiment = replace(experiment, dropout=0.1, batch_norm=True, optimizer=replace(experiment.optimizer, clip=clip))
    experiment = replace(experiment, loop=replace(LOOP, ema=0.9))
    result = fit(experiment, tmp_path / "run")
    checkpoint = load(result.last)
    _, states = reference(experiment, 6)
    model, ema = checkpoint.tensors("model"), checkpoint.tensors("ema")
    assert model.keys() == states[-1].keys()
    for name, value in states[-1].items():
        assert torch.equal(model[name], value), name
        if value.is_floating_point():
            seed_all(0)
            average = dict(experiment.build_task().state_dict())[name].double()
            for state in states:
                average = 0.9 * average + 0.1 * state[name].double()
            torch.testing.assert_close(ema[name].double(), average, rtol=0, atol=1e-6)
    assert model["steps_seen"] == 6
    assert (checkpoint.header.step, result.steps) == (6, 6)
    assert from_json(json.loads((tmp_path / "run" / "config.json").read_text())) == experiment


def test_clipping_changes_something(experiment, tmp_path: Path):
    """Else the test above could not fail for it: the clipped run's gradients are longer than the limit."""
    result = fit(experiment, tmp_path / "run")
    assert min(value for _, value in read_curves(result.folder)["train/gradient_norm"]) > 0.5


def test_micro_batches_are_one_batch(experiment, tmp_path: Path):
    whole = fit(experiment, tmp_path / "whole")
    parts = fit(replace(experiment, loop=replace(LOOP, accumulate=4)), tmp_path / "parts")
    one, other = load(whole.last).tensors("model"), load(parts.last).tensors("model")
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
    curves = [read_curves(result.folder) for result in (whole, parts)]
    assert curves[0].keys() == curves[1].keys()
    for name in curves[0]:
        assert curves[1][name] == [(step, pytest.approx(value, rel=1e-5)) for step, value in curves[0][name]]


def test_the_curves_are_means_over_the_steps_since_the_last_point(experiment, tmp_path: Path):
    fine = fit(replace(experiment, loop=replace(LOOP, log_every=1)), tmp_path / "fine")
    coarse = fit(replace(experiment, loop=replace(LOOP, log_every=4)), tmp_path / "coarse")
    losses = dict(read_curves(fine.folder)["train/loss"])
    means = read_curves(coarse.folder)["train/loss"]
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert means == [
        (4, pytest.approx(sum(losses[step] for step in (1, 2, 3, 4)) / 4)),
        (6, pytest.approx((losses[5] + losses[6]) / 2)),
    ]
    rates = dict(read_curves(fine.folder)["train/learning_rate"])
    assert rates[3] == pytest.approx(1e-6 + (1e-2 - 1e-6) * 2 / 2.5)
    # An epoch is 2.5 steps: evaluations after 3 and 5 steps, and at the end.
    assert [step for step, _ in read_curves(fine.folder)["validation/top1"]] == [3, 5, 6]
    assert all(value == 7 for _, value in read_curves(fine.folder)["validation/samples"])


def test_ten_samples_and_a_batch_of_sixty_four(experiment, tmp_path: Path):
    experiment = replace(experiment, size=10, loop=Loop(epochs=30, batch_size=64, accelerator="cpu"))
    result = fit(experiment, tmp_path / "run")
    assert result.steps == round(30 * 10 / 64) == 5
    assert result.metrics["samples"] == 7


def test_best_last_and_kept_checkpoints(experiment, tmp_path: Path):
    experiment = replace(
        experiment, loop=replace(LOOP, steps=20, monitor="top1", keep_every=7, evaluate_every=0.4, ema=0.5)
    )
    result = fit(experiment, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best.safetensors", "last.safetensors", "step_00000007.safetensors", "step_00000014.safetensors"]
    curve = read_curves(result.folder)["validation/top1"]
    best_step, best_value = max(curve, key=lambda point: (point[1], -point[0]))
    assert best_value > min(value for _, value in curve)
    header = load(result.best).header
    assert (header.step, header.metrics["top1"]) == (best_step, best_value)
    assert evaluate_checkpoint(result.best)["top1"] == best_value
    assert not load(result.best).tensors("optimizer")
    lowest = fit(replace(experiment, loop=replace(experiment.loop, mode="min")), tmp_path / "lowest")
    assert load(lowest.best).header.metrics["top1"] == min(value for _, value in curve)
    assert load(tmp_path / "run" / "checkpoints" / "step_00000007.safetensors").header.step == 7


def test_a_run_says_that_it_is_done_and_where_its_model_lies(experiment, tmp_path: Path, capsys):
    for loop, best in ((LOOP, ""), (replace(LOOP, monitor="top1"), "; its best: {}/best.safetensors")):
        run = replace(experiment, loop=replace(loop, steps=3))
        folder = tmp_path / str(loop.monitor)
        for resume in (False, True):  # once more where nothing is left to do
            fit(run, folder, resume=resume)
            place = folder / "checkpoints"
            last = f"The run of 3 steps is done: {place}/last.safetensors{best.format(place)}\n"
            assert capsys.readouterr().err.endswith(last)


def test_the_moving_average_is_what_is_evaluated(experiment, tmp_path: Path):
    experiment = replace(experiment, validation_size=300, loop=replace(LOOP, steps=12, ema=0.8))
    result = fit(experiment, tmp_path / "run")
    scores = {ema: evaluate_checkpoint(result.last, ema=ema)["top1"] for ema in (True, False)}
    assert result.metrics["top1"] == scores[True] != scores[False]


def test_an_unknown_monitored_metric(experiment, tmp_path: Path):
    with pytest.raises(VitrailError, match="no metric top5 to monitor; choose one of top1, samples"):
        fit(replace(experiment, loop=replace(LOOP, monitor="top5")), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # found before training begins


def test_the_log_says_once_when_the_held_out_loss_has_turned(experiment, tmp_path: Path, monkeypatch, capsys):
    losses = iter([3.0, 2.0, 2.5, 2.4, 2.7, 2.8, 2.9, 3.0])
    monkeypatch.setattr("vitrail.engine.loop.evaluate", lambda *_: {"loss": next(losses)})
    epoch = len(experiment.train_dataset()) / LOOP.batch_size
    fit(replace(experiment, loop=replace(LOOP, steps=8, evaluate_every=1 / epoch)), tmp_path / "run")
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count("The held-out loss was least at step 2 (2, now 2.8) and rises: more training may make") == 1


def test_two_optimizers_take_turns(experiment, tmp_path: Path):
    experiment = replace(experiment, adversary=True)
    result = fit(experiment, tmp_path / "run")
    seed_all(0)
    task = experiment.build_task()
    critic = {name: value.clone() for name, value in task.critic.state_dict().items()}
    momentum = {name: torch.zeros_like(value) for name, value in critic.items()}
    # The critic minimises the mean square of what it says of the logits, by Nesterov's rule; the logits are those of
    # the generator after its own turn, and the critic's part of the generator's loss must not reach the critic.
    network, config = task.phases()["generator"]
    data, loop = experiment.train_dataset(), experiment.loop
    batches = training_batches(data, batch_size=8, steps=6, seed=0, loader=experiment.loader)
    for step, batch in enumerate(batches):
        run = {"steps": 6, "steps_per_epoch": 20 / 8, "batch_size": loop.batch_size}
        set_schedules(network, config, step, **run)
        task.critic.load_state_dict(critic)
        task.zero_grad()
        task(batch, "generator")["loss"].backward()
        network.step()
        task.zero_grad()
        task(batch, "critic")["loss"].backward()
        sgd = OptimizerConfig(name="sgd", lr=1e-2, lr_batch_size=None, warmup_epochs=0)
        rate = learning_rate(sgd, step, **run)
        for name, parameter in task.critic.named_parameters():
            gradient = parameter.grad + (0.05 * critic[name] if name == "weight" else 0)
            momentum[name] = 0.9 * momentum[name] + gradient if step else gradient
            critic[name] = critic[name] - rate * (gradient + 0.9 * momentum[name])
    final = load(result.last).tensors("model")
    for name, value in critic.items():
        torch.testing.assert_close(final[f"critic.{name}"], value, rtol=1e-5, atol=1e-6)
    for name, value in task.blocks.state_dict().items():
        torch.testing.assert_close(final[f"blocks.{name}"], value, rtol=1e-5, atol=1e-6)
    assert {"train/generator/loss", "train/critic/loss", "train/critic/learning_rate"} <= read_curves(
        result.folder
    ).keys()


def test_initialize_is_called_on_a_fresh_start_alone(experiment, tmp_path: Path):
    calls = []

    def initialize(task):
        calls.append(task)
        torch.nn.init.zeros_(task.head.weight)

    experiment = replace(experiment, optimizer=replace(experiment.optimizer, lr=0.0))
    fit(experiment, tmp_path / "run", initialize=initialize)
    assert not load(tmp_path / "run").tensors("model")["head.weight"].any()
    fit(experiment, tmp_path / "run", resume=True, initialize=initialize)
    assert len(calls) == 1


def test_a_folder_with_a_run_is_refused(experiment, tmp_path: Path):
    fit(experiment, tmp_path / "run")
    with pytest.raises(VitrailError, match="already holds a run; go on with it by --resume"):
        fit(experiment, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes()
    again = fit(experiment, tmp_path / "run", resume=True)
    assert (again.metrics, again.images_per_second) == (load(again.last).header.metrics, 0)
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes() == before


def test_curves_of_something_else_are_not_overwritten(experiment, tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("mine\n")
    with pytest.raises(
        VitrailError, match=r"metrics.csv is of no run, and one would overwrite it; choose another folder"
    ):
        fit(experiment, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "mine\n"


def test_what_a_run_left_that_was_killed_before_its_first_checkpoint_goes(experiment, tmp_path: Path):
    fit(replace(experiment, loop=replace(LOOP, monitor="top1", keep_every=2)), tmp_path)
    (tmp_path / "checkpoints" / "last.safetensors").unlink()
    fit(replace(experiment, size=24), tmp_path, resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.safetensors"]


def test_a_folder_below_a_file_is_refused_in_a_sentence(experiment, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(VitrailError, match=r"^Cannot write .*: a file stands where its folder should be; make room"):
        fit(experiment, tmp_path / "file" / "run")


def test_evaluations_at_fractions_of_an_epoch():
    """Every 1.4 steps, seven at each fifth: 7 / 1.4 is a little less than 5 in binary fractions."""
    assert [step for step in range(1, 15) if _passes(step, 0.2 * 7)] == [2, 3, 5, 6, 7, 9, 10, 12, 13, 14]


def test_another_configuration_is_refused_by_name(experiment, tmp_path: Path):
    fit(experiment, tmp_path / "run")
    other = replace(
        experiment, noise=0.2, optimizer=replace(experiment.optimizer, clip=1.0), loop=replace(LOOP, log_every=3)
    )
    with pytest.raises(
        VitrailError, match=r"configuration: noise \(0\.1, now 0\.2\), optimizer\.clip \(None, now 1\.0\);"
    ):
        fit(other, tmp_path / "run", resume=True)
    allowed = replace(experiment, loop=replace(LOOP, log_every=3, checkpoint_every=7, accumulate=2))
    fit(allowed, tmp_path / "run", resume=True)


def test_what_is_not_finite_ends_the_run_and_spares_the_checkpoint(experiment, tmp_path: Path):
    thirtieth = int(np.random.default_rng((0, 0)).permutation(40)[29])  # in the fourth batch of eight
    experiment = replace(experiment, size=40, poisoned=thirtieth, loop=replace(LOOP, steps=20, checkpoint_every=1))
    with pytest.raises(
        VitrailError, match=r"in step \d+ \(loss nan, .*gradient_norm nan\); .*last\.safetensors"
    ) as error:
        fit(experiment, tmp_path / "run")
    assert "in step 4 " in str(error.value)
    checkpoint = load(tmp_path / "run")
    assert checkpoint.header.step == 3
    assert all(value.isfinite().all() for value in checkpoint.tensors("model").values())
    seldom = replace(experiment, loop=replace(experiment.loop, checkpoint_every=20, log_every=20))
    with pytest.raises(VitrailError, match=r"in step 4 .*none was saved"):
        fit(seldom, tmp_path / "seldom")


def test_a_request_to_stop_ends_the_step_and_writes_a_checkpoint(experiment, toy, tmp_path: Path, monkeypatch):
    whole = fit(experiment, tmp_path / "whole")
    plain = toy.ToyTask.after_step

    def interrupt(task, step, steps):
        plain(task, step, steps)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(toy.ToyTask, "after_step", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"Stopped after step 3 of 6; go on with --resume in .*run"):
        fit(experiment, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before
    assert load(tmp_path / "run").header.step == 3
    monkeypatch.undo()
    result = fit(experiment, tmp_path / "run", resume=True)
    assert (result.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    assert result.last.read_bytes() == whole.last.read_bytes()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(experiment, tmp_path: Path):
    exact, rough = (
        fit(replace(experiment, loop=replace(LOOP, precision=precision)), tmp_path / precision)
        for precision in ("32-true", "bf16-mixed")
    )
    one, other = (load(result.last).tensors("model")["head.weight"] for result in (exact, rough))
    assert other.dtype == torch.float32
    assert 0 < (one - other).abs().max() < 0.02


def test_the_batch_keeps_its_precision(experiment, toy, tmp_path: Path, monkeypatch):
    seen = []
    plain = toy.ToyTask.forward

    def forward(task, batch, phase):
        seen.append(batch.features.dtype)
        return plain(task, batch, phase)

    monkeypatch.setattr(toy.ToyTask, "forward", forward)
    fit(replace(experiment, loop=replace(LOOP, precision="bf16-mixed")), tmp_path / "run")
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 9, "accumulate": 2}, "batch"),
        ({"precision": "16-mixed"}, "float16 is not for CPUs"),
        ({"devices": 0}, "at least one device"),
    ],
)
def test_what_cannot_be_is_said(experiment, tmp_path: Path, fields, message):
    with pytest.raises(VitrailError, match=message):
        fit(replace(experiment, loop=replace(LOOP, **fields)), tmp_path / "run")


@pytest.mark.parametrize(
    "fields", [{"epochs": 0}, {"steps": 0}, {"evaluate_every": 0.0}, {"keep_every": -1}, {"ema": 1}]
)
def test_senseless_loops(fields):
    with pytest.raises(VitrailError, match=rf"Loop\.{next(iter(fields))} is "):
        Loop(**fields)


def test_evaluation_on_other_data(experiment, toy, tmp_path: Path):
    result = fit(replace(experiment, validation_size=None), tmp_path / "run")
    assert result.metrics == {}
    with pytest.raises(VitrailError, match="has no validation data"):
        evaluate_checkpoint(result.last)
    points = [toy.Points(11)[number] for number in range(11)]
    _, task = open_task(result.last)
    batch = toy.Point(torch.stack([point.features for point in points]), torch.tensor([p.label for p in points]))
    with torch.no_grad():
        right = task(batch, "evaluate")["logits"].argmax(dim=1) == batch.label
    scores = evaluate_checkpoint(result.last, toy.Points(11), batch_size=4)
    assert scores == {"samples": 11, "top1": right.double().mean().item()}
