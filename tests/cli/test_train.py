"""Ways to train, each for a step or two of a tiny network: where weights, classes and data come from."""

import io
import json
import shutil
import tarfile

import pytest
import torch

from vitrail.cli.main import main
from vitrail.engine.checkpoint import load

TINY = ["--loop.steps", "1", "--loop.batch-size", "4", "--loader.workers", "0", "--loop.accelerator", "cpu"]
TINY += ["--train-transform.size", "32", "--eval-transform.size", "32"]
NARROW = ["--backbone.width", "32", "--backbone.depth", "1", "--backbone.heads", "4"]


@pytest.fixture(scope="module")
def few(photos, tmp_path_factory):
    """Two photos of each of three classes."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("banana", "lemon", "tomato"):
        (folder / name).mkdir()
        for number in (0, 1):
            shutil.copy(photos / "test" / name / f"{number:02}.webp", folder / name)
    return folder


@pytest.fixture
def train(few, tmp_path):
    """Runs `vitrail train` on the few photos and opens the last checkpoint."""

    def run_it(recipe, *options, data=few, validation=few, size=NARROW):
        command = ["train", recipe, "-o", str(tmp_path / "run"), *TINY, *size, *map(str, options)]
        assert main([*command, "--data.root", str(data), "--validation", str(validation)]) == 0
        return load(tmp_path / "run" / "checkpoints" / "last.safetensors")

    return run_it


@pytest.fixture(scope="module")
def source(few, tmp_path_factory):
    """A run on the few photos to start from."""
    folder = tmp_path_factory.mktemp("source") / "run"
    data = ["--data.root", str(few), "--validation", str(few)]
    assert main(["train", "xcit_folder", "-o", str(folder), *TINY, *NARROW, *data]) == 0
    return folder


@pytest.fixture
def frozen():
    """Options that keep weights where they start: what they were loaded from can be seen after a step."""
    return ["--optimizer.lr", "0", "--optimizer.min-lr", "0", "--optimizer.warmup-lr", "0"]


def weights(checkpoint):
    """The parameters of a checkpoint's network, without running means."""
    return {name: value for name, value in checkpoint.tensors("model").items() if "running" not in name}


def test_transfer_to_other_classes_leaves_the_head_out(run, train, frozen):
    wide = ["--backbone.width", "32", "--backbone.depth", "2", "--backbone.heads", "4", "--backbone.patch-size", "8"]
    wide += ["--backbone.drop-path", "0.05"]
    before, after = weights(load(run)), weights(train("xcit_transfer", "--weights", run, *frozen, size=wide))
    assert after["backbone.head.weight"].shape == (3, 32) and before["backbone.head.weight"].shape == (10, 32)
    body = [name for name in before if "head" not in name and "num_batches" not in name]
    assert body and all(torch.equal(before[name], after[name]) for name in body)


def test_fine_tuning_at_a_higher_resolution_keeps_the_head(source, train, frozen):
    larger = ["--train-transform.size", "48", "--eval-transform.size", "48"]
    checkpoint = train("xcit_transfer", "--model", "xcit_tiny_12_p8", "--weights", source, *frozen, *larger)
    before, after = weights(load(source)), weights(checkpoint)
    assert torch.equal(before["backbone.head.weight"], after["backbone.head.weight"])
    assert checkpoint.header.configuration["eval_transform"]["size"] == 48


def test_a_checkpoint_teaches(source, train, tmp_path):
    train("xcit_folder", "--teacher", source)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    values = {row.split(",")[1]: float(row.split(",")[2]) for row in rows[1:]}
    mean = (values["train/label_loss"] + values["train/distillation_loss"]) / 2
    assert values["train/loss"] == pytest.approx(mean, rel=1e-6)


def test_deit_and_resnet_train_by_the_same_recipe(train):
    narrow = [*NARROW, "--backbone.image-size", "32"]
    checkpoint = train("xcit_folder", "--model", "deit_tiny_patch16_224", size=narrow)
    assert checkpoint.header.configuration["backbone"]["type"] == "backbones.vit.ViTConfig"


def test_resnet_trains_by_the_same_recipe(train):
    checkpoint = train("xcit_folder", "--model", "resnet18", size=[])
    assert checkpoint.header.configuration["backbone"] == {"type": "backbones.resnet.ResNetConfig", "depth": 18}


def test_average_half_precision_and_repeats_together(train, frozen):
    options = ["--loop.ema", "0.5", "--loop.precision", "bf16-mixed", "--loader.repeats", "3"]
    checkpoint = train("xcit_folder", *options)
    model, average = weights(checkpoint), checkpoint.tensors("ema")
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {torch.float32}
    assert any(not torch.equal(model[name], average[name]) for name in model)


@pytest.mark.parametrize("separator", [",", "\t", " "])
def test_lists(few, train, tmp_path, separator):
    paths = sorted(few.glob("*/*.webp"))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}{separator}{number // 2}\n" for number, path in enumerate(paths)))
    checkpoint = train("xcit_folder", data=listed, validation=listed)
    assert checkpoint.header.configuration["classes"] == ["0", "1", "2"]


def test_tars(few, train, tmp_path):
    shard = tmp_path / "shards" / "0.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for number, path in enumerate(sorted(few.glob("*/*.webp"))):
            for suffix, data in (("webp", path.read_bytes()), ("cls", path.parent.name.encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    checkpoint = train("xcit_folder", data=shard.parent, validation=shard)
    assert checkpoint.header.configuration["classes"] == ["banana", "lemon", "tomato"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--validation", "nowhere"], "There is no file or folder nowhere"),
        (["--weights", "nowhere/model.pth"], "There is no file nowhere/model.pth"),
        (["--teacher", "nowhere"], "There is no checkpoint nowhere"),
        (["--backbone.heads", "7"], "32 channels cannot be shared out among 7 heads"),
        (["--loop.accumulate", "3"], "choose a batch size that is a multiple of 3"),
        (["--optimizer.lr", "nan"], "OptimizerConfig.lr is nan; it must be a finite number."),
    ],
)
def test_what_cannot_start_leaves_nothing_behind(few, tmp_path, capsys, options, sentence):
    command = ["train", "xcit_folder", "-o", str(tmp_path / "run"), *TINY, *NARROW, "--data.root", str(few)]
    assert main([*command, "--validation", str(few), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail: ") and sentence in line
    assert not (tmp_path / "run").exists()


def test_a_last_step_that_leaves_the_finite_numbers_leaves_no_checkpoint(few, tmp_path, capsys):
    data = ["--data.root", str(few), "--validation", str(few)]
    wild = ["--optimizer.lr", "1e30", "--optimizer.warmup-epochs", "0"]
    assert main(["train", "xcit_folder", "-o", str(tmp_path / "run"), *TINY, *NARROW, *data, *wild]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "left the finite numbers in step 1 (" in last and "validation loss nan" in last and "none was saved" in last
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_configuration_lies_beside_the_run(source):
    configuration = json.loads((source / "config.json").read_text())
    assert configuration == load(source).header.configuration
