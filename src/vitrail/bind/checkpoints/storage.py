"""Models as single files: ours, the official layout, CLIP's, and checkpoints of training.

A file of ours is safetensors; its metadata hold, under `vitrail.bind`, JSON: the model's configuration, and how its
matrices are stored.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.bind.checkpoints.clip import from_clip, is_clip
from vitrail.bind.checkpoints.compact import Weights, compact, stored_weights
from vitrail.bind.checkpoints.official import PUBLISHED, Settings, from_official, is_official
from vitrail.bind.model import ImageBind, ImageBindConfig
from vitrail.config import from_json, to_json
from vitrail.download import fetch
from vitrail.engine.checkpoint import load as load_checkpoint
from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path
from vitrail.layers.low_rank import LowRankLinear, merge_low_rank
from vitrail.tensors import read_tensors

METADATA = "vitrail.bind"


def save_model(model: ImageBind, path: str | Path) -> None:
    """Writes a model to one file, whole or not at all, its matrices as the model has them.

    Args:
        model: to save; low-rank changes are merged in the file.
        path: ends in .safetensors.

    Raises:
        VitrailError: another suffix, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise VitrailError(f"Cannot write a model to {path}: its name must end in .safetensors.")
    if any(isinstance(module, LowRankLinear) for module in model.modules()):
        model = copy.deepcopy(model)
        merge_low_rank(model)
    about = {"config": to_json(model.config), "weights": stored_weights(model)}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {METADATA: json.dumps(about)})


def load_model(
    source: str | Path,
    modalities: Sequence[str] | None = None,
    weights: Weights | None = None,
    settings: Settings | None = None,
) -> ImageBind:
    """A trained model in evaluation mode, on the CPU.

    Nothing is computed or copied that is not needed: tensors are used where they lie in the file. A file that is
    changed while its model is in use changes the model.

    Args:
        source: a published name ("imagebind_huge"), a file that `save_model` wrote, one in the official layout, of any
            size, one of CLIP or OpenCLIP with a ViT (a model of image and text), a training checkpoint or the folder of
            a run.
        modalities: the senses that are wanted; None: all that there are.
        weights: how to keep matrices in memory: "float32", "bfloat16" (half of it) or "int8" (a quarter); the latter
            two for inference alone. None: as they are stored.
        settings: fields of the senses that are to be others than the model's, {"imu": {"acceleration": "g"}}, or that
            foreign files do not show, {"image": {"heads": 4}}.

    Raises:
        VitrailError: there is no such model, the file is none, or it lacks a sense that is wanted.
    """
    if weights not in (None, *get_args(Weights)):
        raise VitrailError(f"Weights cannot be kept as {weights}; choose among {', '.join(get_args(Weights))}.")
    settings = settings or {}
    config, state, stored = _read(_find(source), settings)
    said = {name: dataclasses.replace(one, **settings.get(name, {})) for name, one in config.modalities.items()}
    config = ImageBindConfig(config.dimension, said)
    if modalities is not None:
        if missing := [name for name in modalities if name not in config.modalities]:
            raise VitrailError(
                f"{source} has no modality {missing[0]!r} but {', '.join(config.modalities)}; choose among these."
            )
        config = ImageBindConfig(config.dimension, {name: config.modalities[name] for name in modalities})
        state = {key: tensor for key, tensor in state.items() if key.split(".")[1] in modalities}
    with torch.device("meta"):
        model = ImageBind(config)
    if stored != "float32":
        compact(model, stored)
    _fill(model, state, str(source))
    if weights not in (None, stored):
        if stored != "float32":
            raise VitrailError(
                f"{source} holds weights in {stored}, which cannot become {weights}; load them as stored."
            )
        compact(model, weights)
    return model.eval()


def fingerprint(source: str | Path) -> str:
    """What tells the models of two files apart: a hash of all their bytes.

    Raises:
        VitrailError: there is no such model.
    """
    path = _find(source)
    path = load_checkpoint(path).path if path.is_dir() else path
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.exists():
        return path
    if str(source) in PUBLISHED:
        return fetch(PUBLISHED[str(source)])
    raise FileError(f"There is no model {source}; name a file, the folder of a run, or {', '.join(PUBLISHED)}.")


def _read(path: Path, settings: Settings) -> tuple[ImageBindConfig, dict[str, Tensor], Weights]:
    """Configuration, tensors under our keys, and how its matrices are stored."""
    if path.is_dir():
        return _of_training(path)
    tensors, metadata = read_tensors(path, mapped=True)
    if "vitrail" in metadata:
        return _of_training(path)
    if METADATA in metadata:
        return (*_of_ours(path, metadata[METADATA], tensors),)
    if is_official(tensors):
        return *from_official(tensors, settings, str(path)), "float32"
    if is_clip(tensors):
        return *from_clip(tensors, settings, str(path)), "float32"
    raise FileError(f"{path} is neither an ImageBind nor a CLIP with a ViT; check which file it is.")


def _of_ours(
    path: Path, description: str, tensors: Mapping[str, Tensor]
) -> tuple[ImageBindConfig, dict[str, Tensor], Weights]:
    try:
        about = json.loads(description)
        config, stored = from_json(about["config"]), about["weights"]
    except (ValueError, TypeError, KeyError):
        config = stored = None
    if not isinstance(config, ImageBindConfig) or stored not in get_args(Weights):
        raise FileError(f"{path} does not describe a model that this version of Vitrail can build; get it anew.")
    return config, dict(tensors), stored


def _of_training(path: Path) -> tuple[ImageBindConfig, dict[str, Tensor], Weights]:
    from vitrail.engine.checkpoint import open_task

    experiment, task = open_task(path)
    model = getattr(task, "model", None)
    if not isinstance(model, ImageBind):
        raise FileError(f"{path} is of a {type(experiment).__name__}, which has no ImageBind; take one that has.")
    merge_low_rank(model)
    return model.config, model.state_dict(), "float32"


def _fill(model: ImageBind, state: Mapping[str, Tensor], where: str) -> None:
    """Gives the model its tensors, as they are if they have its precision."""
    wanted = model.state_dict()
    wrong = sorted(wanted.keys() ^ state.keys())
    wrong += [key for key in sorted(wanted.keys() & state.keys()) if wanted[key].shape != state[key].shape]
    if wrong:
        raise FileError(
            f"{where} does not fit the model that it describes: {wrong[0]} is one of {len(wrong)} tensors that are "
            "missing, left over or of another shape; get the file anew, or check the settings."
        )
    model.load_state_dict({key: state[key].to(wanted[key].dtype) for key in wanted}, assign=True)
