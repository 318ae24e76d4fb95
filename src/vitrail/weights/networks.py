"""Networks with all that it takes to use them: of a run of ours, whatever it was trained for, exported or published."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.backbones import BackboneConfig
from vitrail.backbones.features import Backbone
from vitrail.config import from_json
from vitrail.data.augmentation import EvalTransform
from vitrail.errors import FileError, VitrailError
from vitrail.tensors import read_tensors
from vitrail.weights.convert import BackboneWeights, find_backbone, load_backbone
from vitrail.weights.models import create_model
from vitrail.weights.published import find_weights

if TYPE_CHECKING:
    from vitrail.recognize.classify import Classifier

METADATA = "vitrail.network"
"""Under this name an exported file carries JSON: the backbone's configuration, the classes, the transform."""


@dataclass(frozen=True)
class Network:
    """A network, what its pictures go through, and what its outputs mean."""

    model: Backbone
    """In evaluation mode."""
    transform: EvalTransform
    """What its pictures go through."""
    classes: tuple[str, ...] = ()
    """Names, in the order of the logits; empty where they are unknown, or where it gives features."""


def open_network(weights: str | Path) -> Network:
    """A network of any origin: a classifier, or one that gives features.

    Args:
        weights: a published name, a checkpoint of a classifier, SplitMask, BEiT or DINO, the folder of a run, or a
            file that `export` wrote.

    Raises:
        VitrailError: no such weights, a file that does not say what it is, or a checkpoint of something else.
    """
    path = Path(weights)
    if not path.exists():
        published = find_weights(str(weights))
        classes = imagenet_classes() if published.num_classes else ()
        return Network(create_model(published.name), published.transform, classes)
    if path.is_file():
        tensors, metadata = read_tensors(path)
        if METADATA in metadata:
            return _exported(path, find_backbone(tensors, str(path)), metadata[METADATA])
        if "vitrail" not in metadata:
            raise FileError(
                f"{path} does not say which model and which classes it is for; "
                "use create_model(name, weights=file), or export it with Vitrail first."
            )
    from vitrail.engine.checkpoint import open_task

    experiment, task = open_task(path)
    model, transform = getattr(task, "backbone", None), getattr(experiment, "eval_transform", None)
    if not (isinstance(model, Backbone) and isinstance(transform, EvalTransform)):
        raise FileError(f"{path} is a {type(experiment).__name__} and has no backbone; take a run that trained one.")
    return Network(model, transform, getattr(experiment, "classes", None) or ())


def load_classifier(weights: str | Path) -> "Classifier":
    """A classifier in evaluation mode, with its class names and its transform.

    Args:
        weights: a published name, a checkpoint of ours, the folder of a run, or a file that `export` wrote.

    Raises:
        VitrailError: no such weights, a file that does not say what it is, or one that knows no classes.
    """
    from vitrail.recognize.classify import Classifier

    network = open_network(weights)
    if not network.model.num_classes:
        raise VitrailError(f"{weights} has no head, only features; train one on it, or take weights for classes.")
    return Classifier(network.model, network.classes, network.transform)


def imagenet_classes() -> tuple[str, ...]:
    """Names of ImageNet's 1000 classes, in the order of the logits."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _exported(path: Path, backbone: BackboneWeights, description: str) -> Network:
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
    return Network(model, transform, classes)
