"""Recipes: one function per experiment, which returns a complete, typed configuration.

Names and summaries are read from the sources without importing them, so that help and completion need no torch.
"""

import ast
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.engine.experiment import Experiment
    from vitrail.engine.loop import Result
    from vitrail.engine.task import Task


def _functions() -> dict[str, tuple[str, str]]:
    """Recipe -> (module, docstring): every public function of the other files of this folder."""
    return {
        node.name: (path.stem, ast.get_docstring(node) or "")
        for path in sorted(Path(__file__).parent.glob("[!_]*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def recipe_names() -> list[str]:
    """All recipes."""
    return list(_functions())


def recipe_summaries() -> dict[str, str]:
    """Recipe -> the first line of its docstring."""
    return {name: docstring.partition("\n")[0] for name, (_, docstring) in _functions().items()}


def load_recipe(name: str, model: str | None = None) -> "Experiment":
    """The configuration that recipe `name` returns, for `model` instead of its own network if one is named.

    Raises:
        VitrailError: there is no such recipe, or it has one network only.
    """
    functions = _functions()
    if name not in functions:
        raise VitrailError(f"There is no recipe {name}; `vitrail recipes` lists them.")
    function = getattr(importlib.import_module(f"vitrail.recipes.{functions[name][0]}"), name)
    if model is None:
        return function()
    if "model" not in inspect.signature(function).parameters:
        raise VitrailError(f"The recipe {name} is for one network only; leave out --model.")
    return function(model)


def train(experiment: "Experiment", folder: Path, resume: bool = False) -> "Result":
    """Runs an experiment in `folder`, from the published or local weights that it names, if it names some.

    Raises:
        VitrailError: the folder holds another run, the weights do not fit, the data cannot be read.
    """
    from vitrail.bind.training.binding import BindTask
    from vitrail.compress.training.autoencoder import CodecTask
    from vitrail.engine.loop import fit
    from vitrail.pretrain.pretraining import MaskedTask
    from vitrail.weights import load_weights

    def initialize(task: "Task") -> None:
        if isinstance(task, MaskedTask):
            task.initialize()
        if not experiment.weights:
            return
        if isinstance(task, BindTask) and task.tower is not None:
            load_weights(task.tower, experiment.weights, head="auto")
        elif isinstance(task, BindTask | CodecTask):
            task.start_from(experiment.weights)
        else:
            load_weights(task.get_submodule("backbone"), experiment.weights, head="auto")

    return fit(experiment, folder, resume=resume, initialize=initialize)
