"""Models by name, with weights by name or from a file."""

import dataclasses
from fnmatch import fnmatchcase
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

from torch import nn

from vitrail.backbones import MODELS
from vitrail.backbones.features import Backbone
from vitrail.download import fetch
from vitrail.errors import VitrailError
from vitrail.tensors import read_tensors
from vitrail.weights.convert import BackboneWeights, Head, LoadReport, find_backbone, load_backbone
from vitrail.weights.published import PUBLISHED, find_weights


def list_models(pattern: str = "*") -> list[str]:
    """Names of models that match `pattern` (with * and ?)."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def create_model(
    name: str, weights: str | Path | None = None, num_classes: int | None = None, head: Head = "load", **config: Any
) -> Backbone:
    """A model in evaluation mode: images [B, 3, H, W], normalised -> logits [B, num_classes].

    Args:
        name: as in `list_models`, or with weights, as in `list_weights`: "xcit_small_12_p16.dist_384".
        weights: published (a name or only its tag), a local file, or None for fresh ones.
        num_classes: outputs; 0 for the class token [B, d]. By default what the weights have, 1000 without weights.
        head: what becomes of the weights' own head, as for `load_weights`.
        config: fields of the model's configuration that differ: `drop_path=0.1`.

    Raises:
        VitrailError: an unknown name or field, or weights that do not fit.
    """
    model_name, dot, _ = name.partition(".")
    if model_name not in MODELS:
        family = ", ".join(list_models(f"{model_name.split('_')[0]}_*")[:3]) or ", ".join(list(MODELS)[:3])
        raise VitrailError(f"There is no model {model_name!r}; `vitrail models` lists them all, such as {family}.")
    if head not in get_args(Head):
        raise VitrailError(f"head is {head!r}; it must be one of {', '.join(get_args(Head))}.")
    if dot and weights:
        raise VitrailError(f"{name!r} names weights, and {str(weights)!r} names others; give one of them.")
    if dot:
        weights = name
    elif isinstance(weights, str) and f"{name}.{weights}" in PUBLISHED:
        weights = f"{name}.{weights}"
    if weights is None:
        return _build(model_name, {}, 1000 if num_classes is None else num_classes, config)
    published = PUBLISHED.get(str(weights))
    backbone = _read(weights)
    model = _build(
        model_name,
        published.config if published else {},
        backbone.num_classes if num_classes is None else num_classes,
        config,
    )
    load_backbone(model, backbone, head, str(weights))
    return model


def load_weights(model: nn.Module, weights: str | Path, head: Head = "load") -> LoadReport:
    """Fills a backbone with published weights or those of a file, in any layout that we know.

    Every key of the backbone in the file is used and every parameter of the model is filled; the report says which keys
    belong to other parts of the file.

    Args:
        model: a backbone.
        weights: a published name, a local file, a checkpoint of ours or the folder of a run.
        head: "load"; "skip" to leave the model's own as it is, for other classes; "auto" to load it when its number
            of classes is the model's, and else to skip it.

    Raises:
        VitrailError: no such weights, a damaged or foreign file, or weights that do not fit.
    """
    return load_backbone(model, _read(weights), head, str(weights))


def _read(weights: str | Path) -> BackboneWeights:
    path = Path(weights)
    if path.is_dir():
        from vitrail.engine.checkpoint import load

        path = load(path).path
    elif not path.exists():
        path = fetch(find_weights(str(weights)).file)
    return find_backbone(read_tensors(path)[0], str(weights))


def _build(name: str, published: dict[str, Any], num_classes: int, config: dict[str, Any]) -> Backbone:
    if not isinstance(num_classes, Integral) or num_classes < 0:
        raise VitrailError(f"num_classes is {num_classes}; it must be a whole number, 0 for features.")
    default = MODELS[name]
    fields = [field.name for field in dataclasses.fields(default)]
    if unknown := [field for field in config if field not in fields]:
        raise VitrailError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(fields)}.")
    return dataclasses.replace(default, **(published | config)).build(num_classes).eval()
