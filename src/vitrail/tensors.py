"""Files of tensors, whoever wrote them."""

import argparse
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from vitrail.errors import FileError


def read_tensors(path: str | Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors or PyTorch file by their full names, outer keys first, and its metadata.

    Args:
        path: of the file.
        mapped: leave the tensors of a PyTorch file where they are, to be read when they are used, if its format
            allows; those of safetensors always are.

    Raises:
        FileError: no such file, or not a file of tensors. Files that need more than tensors and plain values to be
            read could run any program, and are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"There is no file {path}; check the path, or name published weights (`vitrail models`).")
    try:
        with path.open("rb") as file:
            looks_safe = path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
        if looks_safe:
            with safetensors.safe_open(path, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        with torch.serialization.safe_globals([argparse.Namespace]):  # training arguments beside the weights
            mapped = mapped and zipfile.is_zipfile(path)  # files of before PyTorch 1.6 are none
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:  # what damaged files raise is of nearly every built-in type
        raise FileError(
            f"{path} is not a readable file of weights (safetensors, or PyTorch with tensors and plain values alone); "
            "it may be cut short or something else: fetch it again."
        ) from None
    return dict(_flatten(loaded)), {}


def _flatten(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
