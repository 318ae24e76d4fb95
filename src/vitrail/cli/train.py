"""`vitrail train`, `evaluate`, `recipes`: from a recipe to a checkpoint to its score."""

import argparse
import json
from pathlib import Path
from typing import Any

from vitrail.cli.inputs import SIZES_HELP, add_device, positive, print_table
from vitrail.cli.recognize import load_classifier

CONFUSION_HELP = "write the confusion matrix (of the last model and resolution) as .csv or .png"


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this file to the command line."""
    from vitrail.recipes import recipe_names

    train = verbs.add_parser(
        "train",
        help="train by a recipe",
        add_help=False,
        usage="vitrail train RECIPE [--model NAME] [-o FOLDER] [--resume] [--FIELD VALUE ...]",
        description="Train by a recipe. `vitrail recipes` lists them, `vitrail train RECIPE --help` shows every field.",
    )
    train.add_argument("-h", "--help", action="store_true", help="show this help; after a recipe, all of its fields")
    train.add_argument("recipe", nargs="?", choices=recipe_names(), metavar="RECIPE")
    train.add_argument("--model", help="another network than the recipe's, see `vitrail models`")
    train.add_argument("-o", "--output", metavar="FOLDER", help="the run's folder (default: runs/RECIPE)")
    train.add_argument("--resume", action="store_true", help="go on with the run in this folder")
    train.set_defaults(run=run_train, takes_fields=True, parser=train)

    evaluate = verbs.add_parser("evaluate", help="accuracy of a classifier on a folder of labelled images")
    evaluate.add_argument("model", metavar="MODEL", nargs="+", help="checkpoints or names of published weights")
    evaluate.add_argument("--data", required=True, type=Path, help="class folders, a list file or tars")
    evaluate.add_argument("--label-column", type=int, default=1, help="of a list file, counted from 0 (default: 1)")
    evaluate.add_argument("--sizes", type=positive, nargs="+", metavar="PIXELS", help=SIZES_HELP)
    evaluate.add_argument("--batch-size", type=positive, default=64, metavar="N")
    evaluate.add_argument(
        "--on-corrupt", choices=("stop", "skip"), default="stop", help="skip: leave out and count unreadable files"
    )
    evaluate.add_argument("--confusion", type=Path, metavar="FILE", help=CONFUSION_HELP)
    evaluate.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy against resolution (Figure 3.3)")
    evaluate.add_argument("--json", action="store_true", help="one JSON object per model and resolution")
    add_device(evaluate)
    evaluate.set_defaults(run=run_evaluate)

    recipes = verbs.add_parser("recipes", help="list the recipes, or print one with all its values")
    recipes.add_argument("recipe", nargs="?", choices=recipe_names(), metavar="RECIPE")
    recipes.set_defaults(run=run_recipes)


def run_train(arguments: argparse.Namespace) -> int:
    """`vitrail train`."""
    if arguments.recipe is None:
        arguments.parser.print_help()
        return 0 if arguments.help else 2
    import tyro

    from vitrail.recipes import load_recipe, train

    recipe = load_recipe(arguments.recipe, arguments.model)
    experiment = tyro.cli(
        type(recipe),
        default=recipe,
        args=["--help"] if arguments.help else arguments.fields,
        prog=f"vitrail train {arguments.recipe}",
        description=arguments.parser.description,
        config=(tyro.conf.AvoidSubcommands,),
    )
    train(experiment, Path(arguments.output or f"runs/{arguments.recipe}"), arguments.resume)
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """`vitrail evaluate`."""
    from vitrail.data.datasets import ImageData
    from vitrail.data.loader import LoaderConfig
    from vitrail.plots import check_format
    from vitrail.recognize.evaluate import evaluate_at, plot_resolutions, write_confusion

    for drawing in (arguments.plot, arguments.confusion):
        if drawing and drawing.suffix != ".csv":
            check_format(drawing)
    loader = LoaderConfig(on_corrupt=arguments.on_corrupt)
    data = ImageData(arguments.data, label_column=arguments.label_column)
    rows: list[tuple[str, ...]] = []
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in arguments.model:
        classifier = load_classifier(argparse.Namespace(model=name, device=arguments.device)).optimized()
        for size in arguments.sizes or [classifier.transform.size]:
            result = evaluate_at(classifier, data, size, arguments.batch_size, loader)
            figures = result.metric.compute()
            curves.setdefault(name, []).append((size, figures["top1"]))
            if arguments.json:
                print(json.dumps({"model": name, "size": size, **figures, "skipped": len(result.skipped)}), flush=True)
            rows.append(
                (name, str(size), *(f"{100 * figures[key]:.2f}" for key in ("top1", "top5", "mean_class_accuracy")))
            )
    if not arguments.json:
        print_table(("model", "pixels", "top-1 (%)", "top-5 (%)", "mean class accuracy (%)"), rows)
    if arguments.confusion:
        write_confusion(result.metric.confusion, classifier.classes, arguments.confusion)
    if arguments.plot:
        plot_resolutions(curves, arguments.plot)
    return 0


def run_recipes(arguments: argparse.Namespace) -> int:
    """`vitrail recipes`."""
    from vitrail.recipes import load_recipe, recipe_summaries

    if arguments.recipe is None:
        print_table(("recipe", ""), ((name, summary) for name, summary in recipe_summaries().items()))
        return 0
    from vitrail.config import to_json

    print(json.dumps(to_json(load_recipe(arguments.recipe)), indent=2))
    return 0
