"""Table 3.8 in miniature: what each part of XCiT is worth, on the Grocery Store Dataset, with several seeds.

    python benchmarks/xcit_ablations.py --data grocery --output ablations --seeds 3

Runs that are finished are not run again, so that the command can be repeated after an interruption, or started several
times side by side on disjoint seeds (--first-seed). Writes `results.csv` and prints the table.
"""

import argparse
import csv
import statistics
from dataclasses import replace
from pathlib import Path

from vitrail.data.datasets import ImageData
from vitrail.errors import VitrailError
from vitrail.files import atomic_path
from vitrail.recipes import load_recipe, train
from vitrail.recognize.evaluate import evaluate_at
from vitrail.weights import load_classifier

# Row of Table 3.8 -> (what differs, top-1 on ImageNet of XCiT-S12/16 in the thesis).
ROWS = {
    "baseline": ({}, "82.0"),
    "linear patch projection": ({"patch_projection": "linear"}, "81.1"),
    "without LPI": ({"local_interaction": False}, "80.8"),
    "without XCA": ({"cross_covariance": False}, "75.9"),
    "without L2 normalisation": ({"normalize": False}, "failed"),
    "without learned temperature": ({"learned_temperature": False}, "81.8"),
}


def top1(row: str, seed: int, data: Path, output: Path, epochs: float | None) -> float | None:
    """Test accuracy, 0..1, of one run; None if training left the finite numbers."""
    recipe = load_recipe("xcit_ablation")
    experiment = replace(
        recipe,
        data=replace(recipe.data, root=data, list=data / "train.txt", classes=data / "classes.csv"),
        validation=data / "val.txt",
        backbone=replace(recipe.backbone, **ROWS[row][0]),
        loop=replace(recipe.loop, seed=seed, epochs=epochs or recipe.loop.epochs),
    )
    folder = output / f"{row.replace(' ', '_')}_{seed}"
    try:
        train(experiment, folder, resume=True)
    except VitrailError as error:
        print(error)
        return None
    classifier = load_classifier(folder)
    test = ImageData(data / "test.txt", label_column=2)
    return evaluate_at(classifier, test, classifier.transform.size).metric.compute()["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the Grocery Store Dataset")
    parser.add_argument("--output", type=Path, default=Path("ablations"))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    scores = {}
    for seed in seeds:
        for row in ROWS:
            scores[row, seed] = top1(row, seed, arguments.data, arguments.output, arguments.epochs)
            print(f"{row}, seed {seed}: {scores[row, seed]}", flush=True)
    with atomic_path(arguments.output / "results.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", "top1"])
        writer.writerows([row, seed, score] for (row, seed), score in scores.items())
    print("| Ablation | top-1 here (%), mean ± deviation | by seed | thesis, ImageNet (%) |\n|---|---|---|---|")
    for row, (_, reported) in ROWS.items():
        values = [100 * score for seed in seeds if (score := scores[row, seed]) is not None]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = f"{statistics.mean(values):.1f} ± {deviation:.1f}" if values else "failed"
        print(f"| {row} | {mean} | {' '.join(f'{value:.1f}' for value in values)} | {reported} |")


if __name__ == "__main__":
    main()
