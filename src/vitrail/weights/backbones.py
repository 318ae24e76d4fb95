"""Any network for its features: of a run of ours, whatever it was trained for, or published."""

from pathlib import Path

from vitrail.backbones import BackboneConfig
from vitrail.backbones.resnet import ResNet
from vitrail.backbones.vit import ViT
from vitrail.backbones.xcit import XCiT
from vitrail.data.augmentation import EvalTransform
from vitrail.engine.checkpoint import open_task
from vitrail.errors import FileError
from vitrail.weights.models import create_model
from vitrail.weights.published import find_weights


def open_backbone(weights: str | Path) -> tuple[XCiT | ViT | ResNet, EvalTransform]:
    """A backbone in evaluation mode, and what its pictures go through.

    Args:
        weights: a checkpoint of SplitMask, BEiT, DINO or a classifier, the folder of a run, or a published name.

    Raises:
        VitrailError: no such weights, or a checkpoint of something without such a backbone.
    """
    if not Path(weights).exists():
        published = find_weights(str(weights))
        model = create_model(published.name, num_classes=0)
        return model, published.transform
    experiment, task = open_task(weights)
    backbone, transform = getattr(task, "backbone", None), getattr(experiment, "eval_transform", None)
    if not isinstance(getattr(experiment, "backbone", None), BackboneConfig) or not isinstance(
        transform, EvalTransform
    ):
        raise FileError(f"{weights} is a {type(experiment).__name__} and has no backbone; take a run that trained one.")
    assert isinstance(backbone, XCiT | ViT | ResNet)
    return backbone, transform
