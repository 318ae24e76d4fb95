"""Whole runs: resumed, in several processes, in half precision, in micro batches; and what becomes of their weights."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from vitrail.engine.checkpoint import load, open_task
from vitrail.engine.curves import read_curves
from vitrail.engine.loop import fit
from vitrail.pretrain.dino import Views
from vitrail.pretrain.masks import MaskedImage
from vitrail.recipes import load_recipe, train
from vitrail.weights import open_network

METHODS = ("splitmask", "beit", "dino")
GOLDEN = {"splitmask": 4.580006, "beit": 2.999376, "dino": 3.306134}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_with_the_same_bits(tiny, tmp_path, all_tensors, method):
    experiment = tiny(method, loop={"steps": 4, "checkpoint_every": 2, "keep_every": 2})
    if method == "splitmask":
        experiment = replace(experiment, tokenizer=replace(experiment.tokenizer, kind="k_means", samples=400))
    whole = train(experiment, tmp_path / "whole")
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    half = tmp_path / "half" / "checkpoints" / "last.safetensors"
    half.write_bytes((tmp_path / "whole" / "checkpoints" / "step_00000002.safetensors").read_bytes())
    if method == "splitmask":  # the words are in the checkpoint: nothing is fitted again
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vitrail.pretrain.tokenizers.Tokenizer.fit", lambda *_: pytest.fail("fitted again"))
            resumed = train(experiment, tmp_path / "half", resume=True)
    else:
        resumed = train(experiment, tmp_path / "half", resume=True)
    expected, found = all_tensors(whole.last), all_tensors(resumed.last)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert resumed.metrics == whole.metrics and {"knn"} < set(whole.metrics)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one_to_rounding(tiny, forked, tmp_path, method, strategy):
    """Negatives are gathered, centers averaged."""
    experiment = tiny(method, validation=None, loop={"steps": 2})
    one = forked(lambda rank: fit(experiment, tmp_path / "one"))
    assert one.wait() == [0], one.log.read_text()
    shared = replace(experiment, loop=replace(experiment.loop, devices=2, strategy=strategy))
    two = forked(lambda rank: fit(shared, tmp_path / "two"), world_size=2)
    assert two.wait() == [0, 0], two.log.read_text()
    expected, found = (load(tmp_path / name).tensors("model") for name in ("one", "two"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: name + text)
    curves = [read_curves(tmp_path / name) for name in ("one", "two")]
    assert curves[0].keys() == curves[1].keys()
    for name, points in curves[0].items():
        assert curves[1][name] == [(step, pytest.approx(value, rel=1e-4, abs=1e-6)) for step, value in points]


def test_an_evaluation_in_two_processes_of_unequal_batches_ends(tiny, forked, tmp_path):
    """Matching looks among a process's own images then: the last batches differ in size."""
    experiment = tiny("splitmask", loop={"steps": 1, "devices": 2, "batch_size": 6})
    held_out = len(experiment.validation_dataset())
    assert held_out % 6 not in (0, 3)
    two = forked(lambda rank: fit(experiment, tmp_path / "run"), world_size=2)
    assert two.wait() == [0, 0], two.log.read_text()
    assert {"validation/loss", "validation/knn"} < set(read_curves(tmp_path / "run"))


def test_micro_batches_are_the_whole_batch_but_for_the_negatives(tiny, tmp_path):
    def losses(name: str, **loop) -> dict[str, float]:
        result = fit(tiny("splitmask", validation=None, loop={"steps": 1, **loop}), tmp_path / name)
        return {name: points[0][1] for name, points in read_curves(result.folder).items()}

    whole, parts = losses("whole"), losses("parts", accumulate=4)
    assert parts["train/inpainting_loss"] == pytest.approx(whole["train/inpainting_loss"], rel=1e-5)
    assert parts["train/matching_loss"] < whole["train/matching_loss"] - 0.5  # 1 negative each, not 7


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_close(tiny, tmp_path, method):
    def loss(precision: str) -> float:
        experiment = tiny(method, validation=None, loop={"steps": 2, "precision": precision})
        return read_curves(fit(experiment, tmp_path / precision).folder)["train/loss"][-1][1]

    assert loss("bf16-mixed") == pytest.approx(loss("32-true"), rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_learns_what_a_cpu_does(tiny, tmp_path, method, precision):
    def loss(accelerator: str) -> float:
        loop = {"steps": 2, "precision": precision, "accelerator": accelerator}
        result = fit(tiny(method, validation=None, loop=loop), tmp_path / accelerator)
        return read_curves(result.folder)["train/loss"][0][1]  # later ones see other dropped paths

    assert loss("cuda") == pytest.approx(loss("cpu"), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiled_is_eager_to_rounding(photos, tmp_path, method):
    """But for stochastic depth, whose random numbers are the compiler's own."""
    sizes = {"width": 32, "depth": 1, "heads": 2, "image-size": 32, "drop-path": 0.0}
    options = {f"backbone.{name}": value for name, value in sizes.items()}
    if method == "dino":
        options |= {"crops.first.size": 32, "crops.second.size": 32, "crops.small.size": 16}
    else:
        options |= {"view.size": 32, "tokenizer.words": 16}
    options |= {"data.root": photos / "test", "validation": None, "loader.workers": 0}
    options |= {"loop.steps": 3, "loop.batch-size": 4, "loop.log-every": 1, "loop.accelerator": "cpu"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    for way in ("no-compile", "compile"):
        command = [sys.executable, "-m", "vitrail", "train", f"{method}_mini", "-o", str(tmp_path / way), *words]
        subprocess.run([*command, "--loop.precision", "32-true", f"--loop.{way}"], check=True)
    eager, compiled = (load(tmp_path / way).tensors("model") for way in ("no-compile", "compile"))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(compiled[name], value) for name, value in eager.items())  # else nothing was compiled


@pytest.mark.parametrize("method", METHODS)
def test_a_run_opens_with_what_it_learned(tiny, tmp_path, method):
    experiment = tiny(method, validation=None, loop={"steps": 1})
    result = train(experiment, tmp_path / "run")
    opened, task = open_task(result.folder)
    assert opened == experiment
    network = open_network(result.folder)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.model(images), task.backbone(images))
    assert (network.transform, network.classes) == (experiment.eval_transform, ())


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_starts_from_it_at_another_size(tiny, tmp_path, method):
    """Every weight of the backbone is the pre-trained one's, the positions resampled; layers at own rates."""
    pretrained = train(tiny(method, validation=None, loop={"steps": 1}), tmp_path / "run")
    recipe = load_recipe("pretrain_finetune_mini")
    tuned = replace(
        recipe,
        weights=str(pretrained.folder),
        backbone=replace(tiny(method).backbone, image_size=48),
        train_transform=replace(recipe.train_transform, size=48),
        eval_transform=replace(recipe.eval_transform, size=48),
        optimizer=replace(recipe.optimizer, lr=0.0, warmup_lr=0.0, min_lr=0.0, weight_decay=0.0),
        loop=replace(recipe.loop, steps=1, batch_size=8, accelerator="cpu", precision="32-true"),
        loader=tiny(method).loader,
    )
    result = train(tuned, tmp_path / "tuned")
    assert set(result.metrics) > {"top1"}
    before, after = (load(path).tensors("model") for path in (pretrained.last, result.last))
    for name, value in after.items():
        if name == "backbone.positions.table":
            assert value.shape == (1, 37, 16) and before[name].shape == (1, 17, 16)
            torch.testing.assert_close(value[:, 1:].mean(dim=1), before[name][:, 1:].mean(dim=1), atol=2e-3, rtol=0)
        elif not name.startswith("backbone.head"):
            assert torch.equal(value, before[name]), name
    phase = tuned.prepared().build_task().phases()["train"]
    scales = sorted({group["lr_scale"] for group in phase.optimizer.param_groups})
    assert scales == pytest.approx([0.75**3, 0.75**2, 0.75, 1.0])


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_of_a_run_stay_what_they_are(tiny, method):
    """Golden values, from weights, pictures and masks that depend on no generator of torch."""
    task = tiny(method).build_task()
    with torch.no_grad():
        for number, (_, value) in enumerate(sorted(task.state_dict().items())):
            if value.ndim and value.numel():
                angles = torch.arange(value.numel(), dtype=torch.float64) * 0.7 + number
                value.copy_((0.3 * torch.sin(angles)).view_as(value).to(value.dtype))
        images = torch.sin(torch.arange(4 * 2 * 3 * 32 * 32, dtype=torch.float64) ** 1.5).float().view(4, 2, 3, 32, 32)
        if method == "dino":
            batch = Views(images, images[..., :16, :16])
        else:
            masks = (torch.arange(16).view(4, 4) * 7 % 16 < 8).expand(4, -1, -1)
            batch = MaskedImage(images[:, 0], masks)
        loss = float(task.eval()(batch, "train")["loss"])
    assert loss == pytest.approx(GOLDEN[method], rel=1e-4)
