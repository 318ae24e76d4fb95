import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitrail.engine.checkpoint import Header, load, load_optimizer, open_task, optimizer_tensors, save
from vitrail.engine.experiment import Loop
from vitrail.errors import FileError


def test_tensors_and_header_come_back_bit_by_bit(tmp_path: Path):
    shared = torch.randn(3)
    tensors = {
        "model.a": shared,
        "model.tied": shared,
        "model.turned": torch.randn(2, 5).mT.contiguous(),
        "model.count": torch.tensor(7),
        "ema.a": torch.tensor([float("inf"), -0.0, 1e-45]),
        "optimizer.train.a.step": torch.tensor(3.0),
    }
    header = Header(3, {"x": [1, None]}, {"top1": 0.1 + 0.2}, {"best": 1 / 3, "é": []})
    save(tmp_path / "deep" / "x.safetensors", header, tensors)
    checkpoint = load(tmp_path / "deep" / "x.safetensors")
    assert checkpoint.header == header
    assert checkpoint.tensors("model").keys() == {"a", "tied", "turned", "count"}
    assert torch.equal(checkpoint.tensors("model")["tied"], shared)
    assert checkpoint.tensors("model")["count"].dtype == torch.int64
    assert checkpoint.tensors("ema")["a"].view(torch.int32).tolist() == tensors["ema.a"].view(torch.int32).tolist()
    assert checkpoint.tensors("optimizer.train").keys() == {"a.step"}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(kind):
    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    def build(module):
        if kind == "adamw":
            return torch.optim.AdamW(module.parameters(), lr=0.1)
        return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)

    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = build(one)
    step(one, optimizer)
    other.load_state_dict(one.state_dict())
    again = build(other)
    load_optimizer(again, other, optimizer_tensors(optimizer, one))
    for _ in range(3):
        step(one, optimizer)
        step(other, again)
    assert torch.equal(one.weight, other.weight)


def test_a_task_opens_without_its_data_and_with_either_weights(toy, tmp_path: Path):
    experiment = toy.Toy(batch_norm=True, loop=Loop(ema=0.5))
    tasks = [experiment.build_task() for _ in range(2)]
    tensors = {
        f"{prefix}.{name}": value
        for prefix, task in zip(("model", "ema"), tasks, strict=True)
        for name, value in task.state_dict().items()
    }
    from vitrail.config import to_json

    save(tmp_path / "checkpoints" / "last.safetensors", Header(1, to_json(experiment)), tensors)
    for ema, task in zip((False, True), tasks, strict=True):
        opened_experiment, opened = open_task(tmp_path, ema=ema)
        assert opened_experiment == experiment
        assert not opened.training
        assert all(torch.equal(value, opened.state_dict()[name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, length):
    path = tmp_path / "x.safetensors"
    save(path, Header(1, None), {"model.a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"x\.safetensors is not a whole safetensors file"):
        load(path)


def test_foreign_and_missing_files_are_named(tmp_path: Path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(FileError, match="not a checkpoint of a run of Vitrail"):
        load(foreign)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pth")
    with pytest.raises(FileError, match=r"pickle\.pth is not a whole safetensors file"):
        load(tmp_path / "pickle.pth")
    with pytest.raises(FileError, match="There is no checkpoint"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="holds no checkpoint"):
        load(tmp_path)


def test_fields_of_other_versions_are_passed_over(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for stored, opens in (({"step": 3, "configuration": None, "weather": "fine"}, True), ({"step": 3}, False)):
        save_file({"model.a": torch.zeros(1)}, path, {"vitrail": json.dumps(stored)})
        if opens:
            assert load(path).header == Header(3, None)
        else:
            with pytest.raises(FileError, match="not a checkpoint of a run of Vitrail"):
                load(path)


def test_tensors_that_do_not_fit_are_named(toy, tmp_path: Path):
    from vitrail.config import to_json

    experiment = toy.Toy()
    tensors = {f"model.{name}": value for name, value in experiment.build_task().state_dict().items()}
    tensors["model.head.weight"] = torch.zeros(4, 6)
    del tensors["model.head.bias"]
    path = tmp_path / "x.safetensors"
    save(path, Header(1, to_json(experiment)), tensors)
    with pytest.raises(FileError, match=r"2 tensors differ, head\.bias, head\.weight among them"):
        open_task(path)
    damaged = to_json(replace(experiment, size="many", dropout="much"))
    save(path, Header(1, damaged), tensors)
    with pytest.raises(FileError, match=r"The configuration in .*x\.safetensors is damaged .*version that wrote it"):
        open_task(path)
    save(path, Header(1, json.loads('{"type": "engine.experiment.Loop"}')), tensors)
    with pytest.raises(FileError, match="does not describe an experiment"):
        open_task(path)
