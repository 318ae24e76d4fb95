"""`vitrail train` and `recipes`: from a recipe to a checkpoint."""

import argparse
import json
from pathlib import Path
from typing import Any

from vitrail.cli import evaluate
from vitrail.cli.inputs import print_table


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

    evaluate.add_verb(verbs)

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


def run_recipes(arguments: argparse.Namespace) -> int:
    """`vitrail recipes`."""
    from vitrail.recipes import load_recipe, recipe_summaries

    if arguments.recipe is None:
        print_table(("recipe", ""), ((name, summary) for name, summary in recipe_summaries().items()))
        return 0
    from vitrail.config import to_json

    print(json.dumps(to_json(load_recipe(arguments.recipe)), indent=2))
    return 0
