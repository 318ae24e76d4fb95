"""Do two senses meet that were never trained together? Zero-shot classification by names, over several seeds.

    python benchmarks/bind_pairs.py digits --data DATA --output digits
    python benchmarks/bind_emergence.py digits --pairs digits --parts emergence temperature head batch procedure
    python benchmarks/bind_pairs.py actions --data DATA --output actions
    python benchmarks/bind_emergence.py actions --pairs actions --parts emergence

emergence    the recipe (`bind_digits`: sounds and names have only pictures in common; `bind_actions`: motion and names
             have only depth in common), a supervised classifier with the same encoder for as many steps, and chance
temperature  fixed temperatures, and a learned one (Table 6.6a)
head         a linear head, and one with a hidden layer as wide as a token (Table 6.6b)
batch        batch sizes, for equally many epochs (Table 6.6c)
procedure    from scratch, the encoder of pictures changed by the names alone, or by all pairs (Table 6.8)

Of several folders of pairs, such as the folds of speakers, each seed takes the next. Finished runs are not run again.
Writes a CSV file and a table in Markdown for each part.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from bind_runs import remembered
from torch import Tensor

from vitrail.bind import ImageBind
from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
from vitrail.bind.modality import Modality
from vitrail.bind.training.binding import BindTraining, Pairs
from vitrail.data.loader import LoaderConfig, training_batches
from vitrail.engine.optim import build_optimizer, set_schedules
from vitrail.engine.processes import seed_all
from vitrail.recipes import load_recipe, train
from vitrail.tables import read_rows, write_table

PARTS = ("emergence", "temperature", "head", "batch", "procedure")


@dataclass(frozen=True)
class Row:
    """One line of a table: what differs from the recipe."""

    name: str
    run: str
    """Names the run, so that rows of several tables share it."""
    change: Callable[[BindTraining], BindTraining] = lambda experiment: experiment
    supervised: bool = False


def sense_with(experiment: BindTraining, name: str, **fields: Any) -> BindTraining:
    """The experiment with some fields of a sense changed."""
    modalities = experiment.model.modalities
    modalities = {**modalities, name: replace(modalities[name], **fields)}
    return replace(experiment, model=replace(experiment.model, modalities=modalities))


def senses(experiment: BindTraining) -> tuple[str, str]:
    """The sense that all pairs share, and the one that never meets names."""
    bound = next(pairs for pairs in experiment.pairs if pairs.second != "text")
    return bound.first, bound.second


def rows_of(part: str, arguments: argparse.Namespace) -> list[Row]:
    recipe: Any = load_recipe(f"bind_{arguments.what}")
    _, emerging = senses(recipe)
    own = recipe.model.modalities[emerging]
    if part == "emergence":
        return [Row("emergent", "recipe"), Row("supervised", "supervised", supervised=True)]
    if part == "temperature":
        rows = []
        for value in sorted({*arguments.temperatures, own.temperature}):
            run = "recipe" if value == own.temperature else f"temperature_{value:g}"
            rows.append(Row(f"{value:g}", run, lambda one, value=value: sense_with(one, emerging, temperature=value)))
        learned = Row("learned", "learned", lambda one: sense_with(one, emerging, learned_temperature=True))
        return [*rows, learned]
    if part == "head":
        hidden = Row(
            "hidden layer", "hidden", lambda one: sense_with(one, emerging, head_width=arguments.width or own.width)
        )
        return [Row("linear", "recipe"), hidden]
    if part == "batch":
        rows = []
        for size in sorted({*arguments.batch_sizes, recipe.loop.batch_size}):
            run = "recipe" if size == recipe.loop.batch_size else f"batch_{size}"
            rows.append(
                Row(f"{size}", run, lambda one, size=size: replace(one, loop=replace(one.loop, batch_size=size)))
            )
        return rows
    return [Row("by names alone", "recipe"), Row("by all pairs", "joint", update_by_all)]


def update_by_all(experiment: BindTraining) -> BindTraining:
    return replace(experiment, pairs=tuple(replace(pairs, update_first=True) for pairs in experiment.pairs))


def experiment_of(row: Row, arguments: argparse.Namespace, seed: int) -> BindTraining:
    experiment: Any = load_recipe(f"bind_{arguments.what}")
    folder = arguments.pairs[seed % len(arguments.pairs)]

    def moved(pairs: Pairs) -> Pairs:
        return replace(pairs, table=folder / pairs.table.name)

    sizes = {name: getattr(arguments, name) for name in ("width", "depth", "heads") if getattr(arguments, name)}
    for name in experiment.model.modalities:
        experiment = sense_with(experiment, name, **sizes)
    loop = replace(experiment.loop, seed=seed, precision=arguments.precision)
    if arguments.epochs:
        loop = replace(loop, epochs=arguments.epochs, evaluate_every=arguments.epochs)
    return row.change(
        replace(
            experiment,
            pairs=tuple(moved(pairs) for pairs in experiment.pairs),
            validation=moved(experiment.validation),
            loop=loop,
            loader=LoaderConfig(workers=arguments.workers),
        )
    )


def named_files(experiment: BindTraining, sense: str, part: str) -> dict[Path, str]:
    """The files of a sense in a part, and what they are called."""
    folder = experiment.pairs[0].table.parent
    table = folder / f"{part}_{sense}_text.csv"
    table = table if table.exists() else folder / f"{part}.csv"
    return {folder / row[sense]: row["text"] for row in read_rows(table)}


def emergent(experiment: BindTraining, folder: Path) -> dict[str, float]:
    """Trains, and classifies the test files of both senses by the names of the classes."""
    train(experiment, folder, resume=True)
    model = ImageBind.load(folder)
    measured = {}
    for kind, sense in zip(("shared", "emerging"), senses(experiment), strict=True):
        files = named_files(experiment, sense, "test")
        names = sorted(set(files.values()))
        classifier = ZeroShotClassifier.from_names(model, names, templates=("{}",))
        found = classifier.classify(model.embed({sense: list(files)}, batch_size=64)[sense])
        expected = torch.tensor([names.index(name) for name in files.values()])
        measured[kind] = (found == expected).double().mean().item()
    return measured | {"chance": 1 / len(names)}


@dataclass(frozen=True)
class Labelled:
    """A data set of inputs of a sense with the numbers of their classes."""

    modality: Modality
    files: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path, label = self.files[number]
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return self.modality.sample(path, generator), label


def supervised(experiment: BindTraining) -> dict[str, float]:
    """Trains the emerging sense's encoder on the names by cross-entropy, with the same optimizer and steps, and tests.

    The head gives as many numbers as there are classes.
    """
    _, emerging = senses(experiment)
    modality = experiment.model.modalities[emerging]
    known, unknown = (named_files(experiment, emerging, part) for part in ("train", "test"))
    names = sorted(set(known.values()))
    loop, optimizer_config = experiment.loop, experiment.optimizer
    per_epoch = len(experiment.train_dataset()) / loop.batch_size
    steps = round(loop.epochs * per_epoch)
    seed_all(loop.seed)
    encoder = modality.build(len(names))
    optimizer = build_optimizer(optimizer_config, encoder)
    samples = Labelled(modality, [(path, names.index(name)) for path, name in known.items()])
    batches = training_batches(
        samples, batch_size=loop.batch_size, steps=steps, seed=loop.seed, loader=experiment.loader
    )
    for step, (inputs, labels) in enumerate(batches):
        set_schedules(
            optimizer, optimizer_config, step, steps=steps, steps_per_epoch=per_epoch, batch_size=loop.batch_size
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.precision == "bf16-mixed"):
            loss = F.cross_entropy(encoder(inputs).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), optimizer_config.clip or torch.inf)
        optimizer.step()
    encoder.eval()
    with torch.inference_mode():
        right = [
            names[int(encoder(modality.read(path)).mean(dim=0).argmax())] == name for path, name in unknown.items()
        ]
    return {"emerging": statistics.mean(right), "chance": 1 / len(names)}


def measured(row: Row, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """The shares of files that are classified right."""
    folder = arguments.output / "runs" / f"{row.run}_{seed}"
    experiment = experiment_of(row, arguments, seed)
    work = partial(supervised, experiment) if row.supervised else partial(emergent, experiment, folder)
    return remembered(folder / "emergence.json", work)


def table(part: str, arguments: argparse.Namespace) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for row in rows_of(part, arguments):
        runs = [measured(row, arguments, seed) for seed in range(arguments.seeds)]
        scores = [100 * run["emerging"] for run in runs]
        minutes = [run["minutes"] for run in runs if "minutes" in run]
        rows.append(
            (
                row.name,
                f"{statistics.mean(scores):.1f}",
                f"{statistics.stdev(scores):.1f}" if len(scores) > 1 else "",
                f"{100 * statistics.mean(run['shared'] for run in runs):.1f}" if "shared" in runs[0] else "",
                f"{statistics.mean(minutes):.1f}" if minutes else "",
            )
        )
    if part == "emergence":
        rows.append(("chance", f"{100 * runs[0]['chance']:.1f}", "", f"{100 * runs[0]['chance']:.1f}", ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "actions"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["emergence"])
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, help="folders that bind_pairs.py wrote")
    parser.add_argument("--output", type=Path, default=Path("bind_emergence"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.05, 0.2, 1.0], help="and the recipe's")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128], help="and the recipe's")
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--width", type=int, help="of every encoder, instead of the recipe's")
    parser.add_argument("--depth", type=int, help="of every encoder, instead of the recipe's")
    parser.add_argument("--heads", type=int, help="of every encoder, instead of the recipe's")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    shared, emerging = senses(cast(BindTraining, load_recipe(f"bind_{arguments.what}")))
    header = [f"{emerging} by names (%)", "deviation", f"{shared} by names (%)", "minutes"]
    for part in arguments.parts:
        text = write_table(arguments.output / part, [part, *header], table(part, arguments))
        print(f"{part}\n\n{text}")


if __name__ == "__main__":
    main()
