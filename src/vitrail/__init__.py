"""Vitrail: XCiT, SplitMask, PQ-MIM and ImageBind on your own images, sounds and sensors."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.weights import create_model, list_models, list_weights, load_classifier, load_weights

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "list_models", "list_weights", "load_classifier", "load_weights"]


_ROOMS = ("compress", "pretrain", "recognize")


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: `import vitrail` alone is instant and loads no torch."""
    if name in __all__:
        return getattr(importlib.import_module("vitrail.weights"), name)
    if name in _ROOMS:
        return importlib.import_module(f"vitrail.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
