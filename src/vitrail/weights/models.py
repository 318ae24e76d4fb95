"""Models by name, with weights by name or from a file."""

import dataclasses
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vitrail.backbones import MODELS, BackboneConfig
from vitrail.backbones.resnet import ResNet
from vitrail.backbones.vit import ViT
from vitrail.backbones.xcit import XCiT
from vitrail.config import from_json
from vitrail.data.augmentation import EvalTransform
from vitrail.download import fetch
from vitrail.errors import FileError, VitrailError
from vitrail.tensors import read_tensors
from vitrail.weights.convert import BackboneWeights, Head, LoadReport, find_backbone, load_backbone
from vitrail.weights.export import METADATA
from vitrail.weights.published import PUBLISHED, find_weights

if TYPE_CHECKING:
    from vitrail.recognize.classify import Classifier


def list_models(pattern: str = "*") -> list[str]:
    """Names of models that match `pattern` (with * and ?)."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def create_model(
    name: str, weights: str | Path | None = None, num_classes: int | None = None, head: Head = "load", **config: Any
) -> XCiT | ViT | ResNet:
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
    model_name, _, tag = name.partition(".")
    if model_name not in MODELS:
        family = ", ".join(list_models(f"{model_name.split('_')[0]}_*")[:3]) or ", ".join(list(MODELS)[:3])
        raise VitrailError(f"There is no model {model_name!r}; `vitrail models` lists them all, such as {family}.")
    if tag and weights:
        raise VitrailError(f"{name!r} names weights, and {str(weights)!r} names others; give one of them.")
    if tag:
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
        model: an XCiT, a ViT or a ResNet.
        weights: a published name, a local file, a checkpoint of ours or the folder of a run.
        head: "load"; "skip" to leave the model's own as it is, for other classes; "auto" to load it when its number
            of classes is the model's, and else to skip it.

    Raises:
        VitrailError: no such weights, a damaged or foreign file, or weights that do not fit.
    """
    return load_backbone(model, _read(weights), head, str(weights))


def load_classifier(weights: str | Path) -> "Classifier":
    """A classifier in evaluation mode, with its class names and its transform.

    Args:
        weights: a published name, a checkpoint of ours, the folder of a run, or a file that `export` wrote.

    Raises:
        VitrailError: no such weights, a file that does not say what it is, or one that knows no classes.
    """
    from vitrail.recognize.classify import Classification, Classifier

    path = Path(weights)
    if not path.exists():
        published = find_weights(str(weights))
        if not published.num_classes:
            raise VitrailError(f"{weights} has no head, only features; train one on it, or take weights for classes.")
        return Classifier(create_model(published.name), imagenet_classes(), published.transform)
    if path.is_file():
        tensors, metadata = read_tensors(path)
        if METADATA in metadata:
            return _exported_classifier(path, find_backbone(tensors, str(path)), metadata[METADATA])
        if "vitrail" not in metadata:
            raise FileError(
                f"{path} does not say which model and which classes it is for; "
                "use create_model(name, weights=file), or export it with Vitrail first."
            )
    from vitrail.engine.checkpoint import open_task

    experiment, task = open_task(path)
    if not isinstance(experiment, Classification):
        raise FileError(
            f"{path} is no classifier but a {type(experiment).__name__}; take a checkpoint of a classifier."
        )
    return Classifier(task.backbone, experiment.classes or (), experiment.eval_transform)


def imagenet_classes() -> tuple[str, ...]:
    """Names of ImageNet's 1000 classes, in the order of the logits."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _exported_classifier(path: Path, backbone: BackboneWeights, description: str) -> "Classifier":
    from vitrail.recognize.classify import Classifier

    damaged = FileError(f"{path} does not say which model, classes and transform it is for; export it anew.")
    try:
        metadata = json.loads(description)
        config, classes, transform = (from_json(metadata[key]) for key in ("backbone", "classes", "transform"))
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    whole = isinstance(config, BackboneConfig) and isinstance(transform, EvalTransform) and isinstance(classes, tuple)
    if not whole or len(classes) != backbone.num_classes:
        raise damaged
    model = config.build(backbone.num_classes).eval()
    load_backbone(model, backbone, where=str(path))
    return Classifier(model, classes, transform)


def _read(weights: str | Path) -> BackboneWeights:
    path = Path(weights)
    if path.is_dir():
        from vitrail.engine.checkpoint import load

        path = load(path).path
    elif not path.exists() and not (path.suffix in (".pth", ".pt", ".safetensors") or len(path.parts) > 1):
        path = fetch(find_weights(str(weights)).file)
    return find_backbone(read_tensors(path)[0], str(weights))


def _build(name: str, published: dict[str, Any], num_classes: int, config: dict[str, Any]) -> XCiT | ViT | ResNet:
    default = MODELS[name]
    fields = [field.name for field in dataclasses.fields(default)]
    if unknown := [field for field in config if field not in fields]:
        raise VitrailError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(fields)}.")
    return dataclasses.replace(default, **(published | config)).build(num_classes).eval()
