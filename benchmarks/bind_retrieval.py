"""Does it matter that crops of a scene are the same? Retrieval among held-out pictures, over several seeds.

    python benchmarks/bind_pairs.py roadscene --data DATA --output roadscene
    python benchmarks/bind_retrieval.py roadscene --pairs roadscene --towers dino=RUN splitmask=RUN
    python benchmarks/bind_pairs.py scenes --data DATA --output scenes
    python benchmarks/bind_retrieval.py scenes --pairs scenes --towers dino=RUN splitmask=RUN

alignment  the recipe (`bind_roadscene`: heat, `bind_scenes`: depth; both senses see the same crop), crops drawn
           independently, and chance (Table 6.6f); the tower is the first
towers     the recipe with each of the towers, and with one that was never trained (Table 6.9)

A tower is a name and a run of ours, whatever it was trained for, or published weights; it stays as it is. Finished runs
are not run again. Writes a CSV file and a table in Markdown for each part.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bind_runs import remembered

from vitrail.bind.training.binding import BindTraining, Pairs
from vitrail.data.loader import LoaderConfig
from vitrail.recipes import load_recipe, train
from vitrail.tables import write_table
from vitrail.weights import open_network

PARTS = ("alignment", "towers")
UNTRAINED = "untrained"
HEADER = ["direction", "R@1 (%)", "R@5 (%)", "R@10 (%)", "deviation", "median rank", "minutes"]


@dataclass(frozen=True)
class Row:
    """One line of a table, of both directions."""

    name: str
    tower: str
    aligned: bool = True

    @property
    def run(self) -> str:
        """Names the run, so that rows of both tables share it."""
        return f"{self.tower}_{'aligned' if self.aligned else 'unaligned'}"


def rows_of(part: str, towers: Sequence[str]) -> list[Row]:
    if part == "alignment":
        return [Row("the same crop", towers[0]), Row("two crops", towers[0], aligned=False)]
    return [Row(name, name) for name in (UNTRAINED, *towers)]


def with_tower(experiment: BindTraining, weights: str | None) -> BindTraining:
    """The experiment with the backbone of some weights, and with pictures prepared as it knows them."""
    if weights is None:
        return replace(experiment, weights=None)
    network = open_network(weights)
    backbone, transform = network.model, network.transform
    image: Any = experiment.model.modalities["image"]
    image = replace(image, backbone=backbone.config, size=transform.size, mean=transform.mean, std=transform.std)
    model = replace(experiment.model, modalities={**experiment.model.modalities, "image": image})
    return replace(experiment, model=model, weights=weights)


def experiment_of(row: Row, arguments: argparse.Namespace, seed: int) -> BindTraining:
    experiment: Any = load_recipe(f"bind_{arguments.what}")
    experiment = with_tower(experiment, arguments.towers.get(row.tower))
    (pairs,) = experiment.pairs
    sizes = {name: getattr(arguments, name) for name in ("width", "depth", "heads") if getattr(arguments, name)}
    bound = replace(experiment.model.modalities[pairs.second], **sizes)
    epochs = arguments.epochs or experiment.loop.epochs
    return replace(
        experiment,
        model=replace(experiment.model, modalities={**experiment.model.modalities, pairs.second: bound}),
        pairs=(replace(pairs, table=arguments.pairs / "train.csv", aligned=row.aligned),),
        validation=held_out(experiment, arguments),
        loop=replace(
            experiment.loop,
            seed=seed,
            epochs=epochs,
            evaluate_every=epochs,
            batch_size=arguments.batch_size or experiment.loop.batch_size,
            precision=arguments.precision,
        ),
        loader=LoaderConfig(workers=arguments.workers),
    )


def held_out(experiment: BindTraining, arguments: argparse.Namespace) -> Pairs:
    assert experiment.validation is not None
    return replace(experiment.validation, table=arguments.pairs / "test.csv")


def measured(row: Row, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Recalls and median ranks."""
    folder = arguments.output / "runs" / f"{row.run}_{seed}"
    experiment = experiment_of(row, arguments, seed)
    return remembered(folder / "retrieval.json", lambda: train(experiment, folder, resume=True).metrics)


def table(part: str, arguments: argparse.Namespace) -> list[Sequence[str]]:
    recipe: Any = load_recipe(f"bind_{arguments.what}")
    (pairs,) = recipe.pairs
    directions = [(pairs.first, pairs.second), (pairs.second, pairs.first)]
    rows: list[Sequence[str]] = []
    for row in rows_of(part, list(arguments.towers)):
        runs = [measured(row, arguments, seed) for seed in range(arguments.seeds)]
        minutes = [run["minutes"] for run in runs if "minutes" in run]
        for source, target in directions:
            recalls = {rank: [100 * run[f"{source}_to_{target}_r{rank}"] for run in runs] for rank in (1, 5, 10)}
            ranks = [run[f"{source}_to_{target}_median_rank"] for run in runs]
            rows.append(
                (
                    row.name,
                    f"{source} to {target}",
                    *(f"{statistics.mean(recalls[rank]):.1f}" for rank in (1, 5, 10)),
                    f"{statistics.stdev(recalls[10]):.1f}" if len(runs) > 1 else "",
                    f"{statistics.mean(ranks):.1f}",
                    f"{statistics.mean(minutes):.1f}" if minutes else "",
                )
            )
    count = len(held_out(recipe, arguments).open(recipe.model))
    recalls_of_chance = [f"{100 * min(rank / count, 1):.1f}" for rank in (1, 5, 10)]
    return [*rows, ("chance", "both", *recalls_of_chance, "", f"{(count + 1) / 2:.1f}", "")]


def tower(text: str) -> tuple[str, str]:
    name, _, weights = text.partition("=")
    if not name or not weights or name == UNTRAINED:
        raise argparse.ArgumentTypeError(f"{text!r} is no tower; write NAME=WEIGHTS with a name of its own")
    return name, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("roadscene", "scenes"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", type=Path, required=True, help="the folder that bind_pairs.py wrote")
    parser.add_argument("--towers", type=tower, nargs="+", required=True, metavar="NAME=WEIGHTS")
    parser.add_argument("--output", type=Path, default=Path("bind_retrieval"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--width", type=int, help="of the bound sense's encoder, instead of the recipe's")
    parser.add_argument("--depth", type=int, help="of the bound sense's encoder, instead of the recipe's")
    parser.add_argument("--heads", type=int, help="of the bound sense's encoder, instead of the recipe's")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    arguments.towers = dict(arguments.towers)
    for part in arguments.parts:
        text = write_table(arguments.output / part, [part, *HEADER], table(part, arguments))
        print(f"{part}\n\n{text}")


if __name__ == "__main__":
    main()
