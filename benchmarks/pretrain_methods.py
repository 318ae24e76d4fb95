"""Does pre-training on the target's own images help? Several comparisons, each over several seeds.

    python benchmarks/pretrain_methods.py --parts methods --data grocery/train --validation grocery/test
    python benchmarks/pretrain_methods.py --parts tokenizers ablation --data flowers17/train --validation flowers17/test
    python benchmarks/pretrain_methods.py --parts epochs --epochs 50 200 800 --data ...
    python benchmarks/pretrain_methods.py --parts methods --labels 10 20 --data ...

methods     random initialisation, SplitMask, BEiT, DINO (Tables 4.1 and 4.6)
tokenizers  SplitMask with random projection, random patches, k-means, and --program, a learned one (Table 4.2)
ablation    BEiT, and SplitMask with its losses switched off one by one, with times relative to BEiT's (Table 4.8)
epochs      SplitMask for several numbers of epochs, those of --epochs (Figures 4.3 and 4.6)

Every row is pre-trained on the training images without their labels, once a seed, and fine-tuned on them with labels,
all rows alike: on all of them, and, as --labels says, on so many of each class only. Finished runs are not run again.
Writes a CSV file and a table in Markdown for each part.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.datasets import ImageData, ImageFiles
from vitrail.data.loader import LoaderConfig
from vitrail.engine.checkpoint import load
from vitrail.engine.curves import read_curves
from vitrail.engine.experiment import Experiment
from vitrail.files import write_text
from vitrail.recipes import load_recipe, train
from vitrail.tables import write_rows, write_table


@dataclass(frozen=True)
class Row:
    """One line of a table: a method, or none, with fields that differ from its recipe's."""

    name: str
    method: str | None
    epochs: float
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """Names what is trained, so that rows of several tables share their runs."""
        return "_".join(
            [
                self.method or "none",
                *(f"{name.rpartition('.')[2]}_{getattr(value, 'stem', value)}" for name, value in self.switched),
            ]
        )

    @property
    def switched(self) -> list[tuple[str, Any]]:
        """The fields that differ from the recipe's."""
        recipe = load_recipe(f"{self.method}_mini") if self.method else None
        return [(name, value) for name, value in self.fields.items() if attrgetter(name)(recipe) != value]


def rows_of(part: str, arguments: argparse.Namespace) -> list[Row]:
    epochs = arguments.epochs[-1]
    if part == "methods":
        learned = [Row(name, name.lower(), epochs) for name in ("SplitMask", "BEiT", "DINO")]
        return [Row("none", None, 0), *learned]
    if part == "tokenizers":
        kinds = ("random_projection", "random_patches", "k_means")
        rows = [Row(f"SplitMask, {kind}", "splitmask", epochs, {"tokenizer.kind": kind}) for kind in kinds]
        if arguments.program:
            learned = {"tokenizer.kind": "program", "tokenizer.program": arguments.program}
            rows.append(Row("SplitMask, learned", "splitmask", epochs, learned))
        return rows
    if part == "ablation":
        return [
            Row("BEiT", "beit", epochs),
            Row("split, inpaint", "splitmask", epochs, {"match": False}),
            Row("split, match", "splitmask", epochs, {"inpaint": False}),
            Row("split, inpaint, match", "splitmask", epochs),
        ]
    return [Row("none", None, 0), *(Row("SplitMask", "splitmask", number) for number in arguments.epochs)]


def sized(experiment: Any, arguments: argparse.Namespace, epochs: float, batch_size: int, seed: int) -> Any:
    network = replace(
        experiment.backbone,
        width=arguments.width,
        depth=arguments.depth,
        heads=arguments.heads,
        patch_size=arguments.patch_size,
        image_size=arguments.size,
    )
    loop = replace(
        experiment.loop,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        precision=arguments.precision,
        compile=arguments.compile,
        evaluate_every=max(1.0, epochs / 10),
        monitor=None,
    )
    return replace(
        experiment,
        data=ImageData(
            arguments.data,
            arguments.list,
            arguments.label_column,
            classes=arguments.classes,
            class_column=arguments.class_column,
            at_least=arguments.at_least,
        ),
        validation=arguments.validation,
        backbone=network,
        eval_transform=replace(experiment.eval_transform, size=arguments.size),
        loop=loop,
        loader=LoaderConfig(workers=arguments.workers),
    )


def pretraining(row: Row, arguments: argparse.Namespace, seed: int) -> Experiment:
    experiment: Any = sized(load_recipe(f"{row.method}_mini"), arguments, row.epochs, arguments.batch_size, seed)
    if row.method == "dino":
        crops = experiment.crops
        large = {name: replace(getattr(crops, name), size=arguments.size) for name in ("first", "second")}
        return replace(experiment, crops=replace(crops, **large, small=replace(crops.small, size=arguments.size // 2)))
    switches = {name: value for name, value in row.fields.items() if "." not in name}
    tokenizer = replace(
        experiment.tokenizer,
        words=arguments.words,
        **{name.partition(".")[2]: value for name, value in row.fields.items() if "." in name},
    )
    return replace(experiment, view=replace(experiment.view, size=arguments.size), tokenizer=tokenizer, **switches)


def some_labels(data: ImageData, count: int, seed: int, path: Path) -> ImageData:
    """So many labelled images of each class, or all that it has, drawn by the seed; the list of them is written."""
    every = data.open(lambda image: image)
    assert isinstance(every, ImageFiles) and every.labels is not None and every.classes is not None
    order = np.random.default_rng(seed).permutation(len(every))
    chosen = [n for label in range(len(every.classes)) for n in order[every.labels[order] == label][:count]]
    write_rows(path, ["path", "label"], [(every.paths[n], every.classes[every.labels[n]]) for n in chosen])
    return replace(data, root=every.root, list=path, label_column=1)


def fine_tuning(weights: Path | None, labels: int | None, arguments: argparse.Namespace, seed: int) -> Experiment:
    """On so many labelled images of each class, or on all."""
    experiment: Any = sized(
        load_recipe("pretrain_finetune_mini"), arguments, arguments.tuning_epochs, arguments.tuning_batch_size, seed
    )
    optimizer = experiment.optimizer
    if arguments.layer_decay is not None:
        optimizer = replace(optimizer, layer_decay=arguments.layer_decay)
    if weights is None:  # nothing in the early layers is worth keeping
        optimizer = replace(optimizer, layer_decay=None)
    if labels is not None:
        path = arguments.output / f"labels_{labels}_{seed}.csv"
        experiment = replace(experiment, data=some_labels(experiment.data, labels, seed, path))
    return replace(
        experiment,
        weights=weights and str(weights),
        optimizer=optimizer,
        train_transform=replace(experiment.train_transform, size=arguments.size),
    )


def finished(experiment: Experiment, folder: Path) -> dict[str, float]:
    """The figures of a run at its end, and images a second where it ran now."""
    last = folder / "checkpoints" / "last.safetensors"
    result = train(experiment, folder, resume=True)
    speed = {"images_per_second": result.images_per_second} if result.images_per_second else {}
    if speed:
        write_text(folder / "speed.txt", str(result.images_per_second))
    elif (folder / "speed.txt").exists():
        speed = {"images_per_second": float((folder / "speed.txt").read_text())}
    return load(last).header.metrics | speed


@dataclass
class Measured:
    """Of one row, a figure a seed."""

    top1: dict[int | None, list[float]]
    """Fine-tuned accuracy by the labelled images of each class, None: all; 0 to 1, as the next."""
    neighbours: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)


def measure(row: Row, arguments: argparse.Namespace) -> Measured:
    found = Measured({labels: [] for labels in (*arguments.labels, None)})
    for seed in range(arguments.seeds):
        name = f"{row.run}_{row.epochs:g}_{seed}"
        weights = None
        if row.method is not None:
            weights = arguments.output / "runs" / name
            metrics = finished(pretraining(row, arguments, seed), weights)
            found.neighbours.append(metrics.get("knn", float("nan")))
            found.images_per_second.append(metrics.get("images_per_second", float("nan")))
        for labels, accuracies in found.top1.items():
            folder = arguments.output / "runs" / f"{name}_tuned{'' if labels is None else f'_{labels}'}"
            finished(fine_tuning(weights, labels, arguments, seed), folder)
            accuracies.append(read_curves(folder)["validation/top1"][-1][1])
    return found


def percent(shares: Sequence[float]) -> str:
    """Mean and standard deviation; nothing of nothing."""
    if not shares:
        return ""
    deviation = f" ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):.1f}{deviation}"


def table(part: str, arguments: argparse.Namespace) -> tuple[list[str], list[Sequence[str]]]:
    """Names of columns, and rows."""
    tuned = ["all" if labels is None else str(labels) for labels in (*arguments.labels, None)]
    header = ["pre-training", "epochs", *(f"top-1 (%), {labels} labels a class" for labels in tuned)]
    header += ["k-NN (%)", "images/s", "step times BEiT's"]
    measured = [(row, measure(row, arguments)) for row in rows_of(part, arguments)]
    beit = next((statistics.mean(found.images_per_second) for row, found in measured if row.method == "beit"), None)
    rows: list[Sequence[str]] = []
    for row, found in measured:
        speed = statistics.mean(found.images_per_second) if found.images_per_second else None
        rows.append(
            [
                row.name,
                f"{row.epochs:g}",
                *(percent(accuracies) for accuracies in found.top1.values()),
                percent(found.neighbours),
                f"{speed:.4g}" if speed else "",
                f"{beit / speed:.2f}" if beit and speed else "",
            ]
        )
    return header, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=("methods", "tokenizers", "ablation", "epochs"), default=["methods"]
    )
    parser.add_argument("--data", type=Path, required=True, help="labelled training images: class folders, or --list")
    parser.add_argument("--validation", type=Path, required=True, help="test images: class folders, or a list")
    parser.add_argument("--list", type=Path, help="a list of paths relative to --data, with labels")
    parser.add_argument("--label-column", type=int, default=1)
    parser.add_argument("--classes", type=Path, help="names of the classes")
    parser.add_argument("--class-column", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("pretrain_methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, nargs="+", default=[200], help="of pre-training; the last one counts")
    parser.add_argument("--labels", type=int, nargs="+", default=[], help="fine-tune on so many of each class too")
    parser.add_argument("--tuning-epochs", type=float, default=50)
    parser.add_argument("--at-least", type=int, help="decode large JPEGs smaller, but not below so many pixels")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: a tenth faster on a CPU")
    parser.add_argument("--layer-decay", type=float, help="of fine-tuning, instead of the recipe's")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tuning-batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--words", type=int, default=1024, help="of every tokenizer")
    parser.add_argument("--program", type=Path, help="a learned tokenizer (vitrail pretrain tokenizer), for tokenizers")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for part in arguments.parts:
        text = write_table(arguments.output / part, *table(part, arguments))
        print(f"{part}\n\n{text}")


if __name__ == "__main__":
    main()
