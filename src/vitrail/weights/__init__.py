"""Models by name, their weights from anywhere, and back to elsewhere."""

from vitrail.weights.convert import LoadReport, to_timm
from vitrail.weights.export import export
from vitrail.weights.models import create_model, list_models, load_weights
from vitrail.weights.networks import Network, load_classifier, open_network
from vitrail.weights.published import PublishedWeights, find_weights, list_weights

__all__ = [
    "LoadReport",
    "Network",
    "PublishedWeights",
    "create_model",
    "export",
    "find_weights",
    "list_models",
    "list_weights",
    "load_classifier",
    "load_weights",
    "open_network",
    "to_timm",
]
