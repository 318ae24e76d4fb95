"""Training binds senses in pairs: what is frozen stays, what is not to change does not, and what it learns is found."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.evaluation.datasets import open_data
from vitrail.bind.evaluation.evaluate import embed_items, evaluate_retrieval
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.training.binding import BindTraining, Handfuls, Pairs, RetrievalMetric
from vitrail.data.loader import LoaderConfig, training_batches
from vitrail.engine.checkpoint import open_task
from vitrail.engine.curves import read_curves
from vitrail.engine.experiment import Loop
from vitrail.engine.optim import OptimizerConfig
from vitrail.engine.processes import seed_all
from vitrail.errors import VitrailError
from vitrail.metrics.retrieval import retrieval
from vitrail.recipes import train

SMALL = {"width": 8, "depth": 1, "heads": 2}
PLAIN = {**SMALL, "size": 16, "erasing": 0.0}
MODEL = ImageBindConfig(
    6,
    {
        "thermal": Thermal(**PLAIN, deep="full", temperature=None),
        "depth": Depth(**PLAIN, temperature=0.2),
        "text": Text(**SMALL, temperature=0.1),
    },
)


@pytest.fixture
def experiment(scenes):
    return BindTraining(
        model=MODEL,
        pairs=(
            Pairs(scenes, "thermal", "depth", update_first=False),
            Pairs(scenes, "thermal", "text", columns=("thermal", "caption"), share=2),
        ),
        validation=Pairs(scenes, "depth", "text", columns=("depth", "caption")),
        frozen=(),
        optimizer=OptimizerConfig(lr=0.01, lr_batch_size=None, warmup_epochs=0, schedule="constant"),
        loop=Loop(steps=2, batch_size=2, accelerator="cpu", log_every=1),
        loader=LoaderConfig(workers=0),
    )


def batch_of(experiment):
    (batch,) = training_batches(experiment.train_dataset(), batch_size=2, steps=1, loader=experiment.loader)
    return batch


def test_a_step_has_its_share_of_each_table(experiment):
    batch = batch_of(experiment)
    assert list(batch) == ["thermal_depth", "thermal_text"]
    assert batch["thermal_depth"].first.shape == (2, 1, 1, 16, 16) == batch["thermal_depth"].second.shape
    assert batch["thermal_text"].first.shape == (2, 2, 1, 16, 16) and batch["thermal_text"].second.shape == (2, 2, 77)
    handfuls = experiment.train_dataset()
    assert isinstance(handfuls, Handfuls) and len(handfuls) == 3
    seen = {tuple(text.tolist()) for number in range(3) for text in handfuls[number]["thermal_text"].second}
    assert len(seen) == 3  # each of the three texts, twice


def test_the_loss_is_the_equation(experiment):
    torch.manual_seed(0)
    task, batch = experiment.build_task().double().eval(), batch_of(experiment)
    for name, temperature, senses in (("thermal_depth", 0.2, ("thermal", "depth")), ("thermal_text", 0.1, None)):
        first, second = (part.flatten(0, 1) for part in batch[name])
        batch[name] = type(batch[name])(*(part.double() if part.is_floating_point() else part for part in batch[name]))
        vectors = [
            F.normalize(task.model.encoders[sense](part.double() if part.is_floating_point() else part), dim=1)
            for sense, part in zip(senses or ("thermal", "text"), (first, second), strict=True)
        ]
        logits = vectors[0] @ vectors[1].mT / temperature
        forth = logits.logsumexp(dim=1) - logits.diagonal()
        back = logits.logsumexp(dim=0) - logits.diagonal()
        made = task(batch, name)
        # info_nce compares in float32
        torch.testing.assert_close(made["loss"].double(), (forth + back).mean(), rtol=1e-5, atol=1e-5)
        assert float(made["temperature"]) == pytest.approx(temperature)
        assert float(made["accuracy"]) == pytest.approx(
            float((logits.argmax(0) == logits.new_tensor(range(len(first)))).double().mean())
        )


@pytest.fixture
def start(tmp_path):
    """A file of a model that training may start from."""
    torch.manual_seed(1)
    MODEL.build().save(tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def changed(experiment, folder):
    """The senses whose encoders or scales a run has changed."""
    seed_all(experiment.loop.seed)
    task = experiment.build_task()
    if experiment.weights:
        task.start_from(experiment.weights)
    before = task.state_dict()
    after = open_task(folder)[1].state_dict()
    return {name.split(".")[2] for name, value in after.items() if not torch.equal(value, before[name])}


def test_tables_of_the_same_senses_learn_apart(experiment, tmp_path):
    first, second = experiment.pairs
    several = replace(experiment, pairs=(first, second, replace(first, share=3), first))
    assert list(several.kinds) == ["thermal_depth", "thermal_text", "thermal_depth_2", "thermal_depth_3"]
    assert [len(pair.first[0]) for pair in batch_of(several).values()] == [1, 2, 3, 1]
    train(several, tmp_path / "run")
    curves = read_curves(tmp_path / "run")
    assert {f"train/{name}/loss" for name in several.kinds} <= curves.keys()


def test_each_kind_of_pairs_changes_what_it_may(experiment, start, tmp_path):
    depth = replace(experiment, pairs=experiment.pairs[:1])
    frozen = replace(experiment, frozen=("thermal",), weights=start)
    still = replace(experiment.optimizer, lr=0.0)
    shared = (replace(experiment.pairs[0], update_first=True), replace(experiment.pairs[1], optimizer=still))
    for name, one, expected in (
        ("depth", depth, {"depth"}),
        ("shared", replace(experiment, pairs=shared), {"depth", "thermal"}),
        ("both", experiment, {"depth", "thermal", "text"}),
        ("frozen", frozen, {"depth", "text"}),
        ("frozen in part", replace(depth, frozen=("depth.blocks", "text"), weights=start), {"depth"}),
    ):
        train(one, tmp_path / name)
        assert changed(one, tmp_path / name) == expected, name


def test_a_run_is_evaluated_by_retrieval_and_is_a_model(experiment, tmp_path):
    result = train(experiment, tmp_path / "run")
    curves = read_curves(tmp_path / "run")
    for name in ("thermal_depth", "thermal_text"):
        assert {f"train/{name}/loss", f"train/{name}/accuracy", f"train/{name}/temperature"} <= curves.keys()
    model = ImageBind.load(tmp_path / "run")
    pairs = experiment.validation.open(MODEL)
    sources = []
    for number in range(3):
        with pairs.opened(number) as both:
            sources.append(both)
    depths, texts = zip(*sources, strict=True)
    vectors = model.embed({"depth": depths, "text": texts})
    expected = retrieval(vectors["depth"], vectors["text"], names=("depth", "text"))
    assert result.metrics == pytest.approx(expected)


def test_a_caption_of_many_files_belongs_to_all_of_them():
    """A perfect model of four classes, each with one caption and fifty files; merged, as of two processes."""
    metrics = [RetrievalMetric(("depth", "text")) for _ in range(2)]
    for number in range(200):
        unit, label = torch.eye(4)[number % 4], number % 4
        metrics[number % 2].update(unit[None], unit[None], torch.tensor([[1000 + number, label]]))
    metrics[0].merge(metrics[1])
    figures = metrics[0].compute()
    # the files of a class are the same to the model, and each is its caption's own
    assert figures["text_to_depth_r1"] == figures["depth_to_text_r1"] == 1
    assert figures["depth_to_text_median_rank"] == figures["text_to_depth_median_rank"] == 1


def test_figures_while_training_are_those_of_vitrail_evaluate(experiment, scenes, tmp_path):
    """Two files share a caption, and one has two."""
    rows = ["0.npy,near", "1.npy,near", "2.npy,far", "2.npy,away", "0.npy,near"]
    (tmp_path / "held_out.csv").write_text("\n".join(["depth,caption", *rows]), encoding="utf-8")
    held_out = Pairs(tmp_path / "held_out.csv", "depth", "text", columns=("depth", "caption"))
    result = train(replace(experiment, validation=held_out), tmp_path / "run")
    model, data = ImageBind.load(tmp_path / "run"), open_data(tmp_path / "held_out.csv", "depth")
    assert len(data.items) == 3
    expected = evaluate_retrieval(model, embed_items(model, data.items, ["depth"]), "depth")
    assert result.metrics == pytest.approx(expected)


def test_low_rank_changes_train_little_and_are_merged(experiment, start, tmp_path):
    thin = replace(experiment, low_rank=1, frozen=("thermal",), weights=start, initialized=("thermal", "depth"))
    train(thin, tmp_path / "run")
    task = thin.build_task()
    learned = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert learned and all(name.endswith((".down", ".up", "text.log_scale")) for name in learned)
    assert not any(name.startswith("model.encoders.thermal") for name in learned)
    model = ImageBind.load(tmp_path / "run")
    assert model.state_dict().keys() == MODEL.build().state_dict().keys()
    name = "blocks.0.feed_forward.expand.weight"
    trained = ImageBind.load(start)
    change = model.encoders["depth"].state_dict()[name] - trained.encoders["depth"].state_dict()[name]
    assert torch.linalg.matrix_rank(change, tol=1e-6) == 1
    with pytest.raises(VitrailError, match="there is nothing to take over"):
        replace(MODEL, modalities={"imu": Inertial(**SMALL)}).build().initialize(start)


def test_encoders_start_from_weights(experiment, start, tmp_path):
    trained = ImageBind.load(start)
    frozen = replace(experiment, pairs=experiment.pairs[:1], frozen=("thermal", "text"), weights=start)
    train(frozen, tmp_path / "run")
    model = ImageBind.load(tmp_path / "run")
    same = {
        sense: all(
            torch.equal(value, trained.encoders[sense].state_dict()[name])
            for name, value in encoder.state_dict().items()
        )
        for sense, encoder in model.encoders.items()
    }
    assert same == {"thermal": True, "depth": False, "text": True}
    state, begun = model.encoders["depth"].state_dict(), trained.encoders["depth"].state_dict()
    assert max(float((state[name] - begun[name]).abs().max()) for name in state) < 0.05  # two steps of about 0.01


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (4, 4)])
def test_pairs_without_negatives_are_refused(experiment, tmp_path, batch_size, accumulate):
    alone = replace(experiment, loop=replace(experiment.loop, batch_size=batch_size, accumulate=accumulate))
    with pytest.raises(VitrailError, match=f"of the pairs thermal_depth .* at least {2 * accumulate}, or the share"):
        train(alone, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    replace(alone, pairs=experiment.pairs[1:]).train_dataset()  # two of these at a time
    replace(alone, loop=replace(alone.loop, batch_size=2 * accumulate)).train_dataset()


def test_pairs_that_bind_nothing(scenes, experiment):
    with pytest.raises(VitrailError, match="Pairs of depth and depth bind nothing"):
        Pairs(scenes, "depth", "depth")
    with pytest.raises(
        VitrailError, match="There are pairs of smell, which is none of the model's thermal, depth, text"
    ):
        replace(experiment, pairs=(Pairs(scenes, "thermal", "smell"),))
    with pytest.raises(VitrailError, match="Training needs pairs"):
        replace(experiment, pairs=())
    with pytest.raises(VitrailError, match=r"BindTraining\.low_rank is 0; it must be at least 1"):
        replace(experiment, low_rank=0)
    with pytest.raises(VitrailError, match=r"There is no depth\.backbone to freeze; .* parts stem, .*blocks, .*head"):
        replace(experiment, frozen=("depth.backbone",)).build_task()
    with pytest.raises(
        VitrailError, match="There is no sense imagee to freeze or to initialize; the model has thermal, depth, text"
    ):
        replace(experiment, frozen=("imagee",))
    for start in ({}, {"weights": "known.safetensors", "initialized": ("depth",)}):
        with pytest.raises(VitrailError, match="thermal is frozen and would start from nothing; give weights"):
            replace(experiment, frozen=("thermal",), **start)


def test_weights_must_have_what_is_frozen(experiment, tmp_path):
    depth = replace(MODEL, modalities={"depth": MODEL.modalities["depth"]}).build()
    depth.save(tmp_path / "depth.safetensors")
    with pytest.raises(VitrailError, match=r"thermal is frozen, and .*depth\.safetensors has none"):
        task = replace(experiment, frozen=("thermal",), weights=str(tmp_path / "depth.safetensors")).build_task()
        task.start_from(str(tmp_path / "depth.safetensors"))
