"""Trained codecs as single files: those that ship with the package, and one's own.

A file is safetensors. Matrices and filters are stored in half precision by default, all else in full; what a codec
computes with are the values as stored, so that all who load the file have the same codec. Its metadata hold, under
`vitrail.codec`, JSON: the codec's name, the configurations of its networks, and what its maker had to say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitrail.compress.autoencoder import AutoencoderConfig
from vitrail.compress.frequencies import Integers, integer_histogram
from vitrail.compress.prior import PriorConfig
from vitrail.compress.training import open_codec_task
from vitrail.config import from_json, to_json
from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path

if TYPE_CHECKING:
    from vitrail.compress.codec import Codec

DEFAULT_MODEL = "photos_1"
"""The shipped codec that is used when none is named."""

METADATA = "vitrail.codec"
_SHIPPED = Path(__file__).parent / "shipped"


def shipped_codecs() -> list[str]:
    """Names of the codecs that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))


def save_codec(codec: "Codec", path: str | Path, facts: Mapping[str, Any] | None = None, half: bool = True) -> None:
    """Writes a codec to one file.

    Args:
        codec: its autoencoder and prior as they were built from their configurations.
        path: ends in .safetensors; its stem is the codec's name from now on.
        facts: what else the file should say, in JSON: the command of its training, its licence.
        half: store matrices and filters as float16; the codec that the file holds is then not exactly `codec`, and its
            fingerprint another.

    Raises:
        VitrailError: another suffix, or a weight that float16 cannot hold.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise VitrailError(f"Cannot write a codec to {path}: its name must end in .safetensors.")
    tensors: dict[str, Tensor] = {"marginals": torch.from_numpy(np.ascontiguousarray(codec.histogram))}
    for room, module in (("autoencoder", codec.autoencoder), ("prior", codec.prior)):
        for name, value in module.state_dict().items():
            tensors[f"{room}.{name}"] = _stored(value.detach().cpu(), half, name)
    about = {
        "name": path.stem,
        "autoencoder": to_json(codec.autoencoder.config),
        "prior": to_json(codec.prior.config),
        "facts": dict(facts or {}),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {METADATA: json.dumps(about)})


def _stored(value: Tensor, half: bool, name: str) -> Tensor:
    if not value.is_floating_point():
        return value.contiguous()
    stored = value.to(torch.float16 if half and value.ndim > 1 else torch.float32).contiguous()
    if not stored.isfinite().all():
        raise VitrailError(f"{name} has values that float16 cannot hold; save the codec with half=False.")
    return stored


def load_codec(source: str | Path | None = None, device: str | torch.device = "cpu") -> "Codec":
    """A codec, ready for use.

    Args:
        source: the name of a shipped codec, a file of `save_codec`, or a training checkpoint (or run folder) of an
            autoencoder with its masked image model; None: the shipped default.
        device: what its networks run on.

    Raises:
        VitrailError: there is no such codec, the file is none, or the training had no masked image model.
    """
    from vitrail.compress.codec import Codec

    source = DEFAULT_MODEL if source is None else source
    path = _SHIPPED / f"{source}.safetensors"
    if not path.exists():
        path = Path(source)
        if not path.exists():
            listed = ", ".join(shipped_codecs()) or "none in this installation"
            raise FileError(
                f"There is no codec {source}; name a shipped one ({listed}), a file or the folder of a run."
            )
        if path.is_dir() or METADATA not in _metadata(path):
            return _of_training(path, device)
    about = json.loads(_metadata(path)[METADATA])
    autoencoder_config, prior_config = from_json(about["autoencoder"]), from_json(about["prior"])
    if not isinstance(autoencoder_config, AutoencoderConfig) or not isinstance(prior_config, PriorConfig):
        raise FileError(f"{path} does not describe a codec; get it anew.")
    autoencoder = autoencoder_config.build()
    prior = prior_config.build(autoencoder.parts, autoencoder.centroids)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    wanted = {"marginals"} | {
        f"{room}.{name}"
        for room, module in (("autoencoder", autoencoder), ("prior", prior))
        for name in module.state_dict()
    }
    if wrong := sorted(wanted ^ tensors.keys()):
        raise FileError(f"{path} does not fit its own configuration ({wrong[0]}, ...); get it anew.")
    for room, module in (("autoencoder", autoencoder), ("prior", prior)):
        state = {name: tensors[f"{room}.{name}"] for name in module.state_dict()}
        try:
            module.load_state_dict(state)
        except RuntimeError:
            raise FileError(f"{path} does not fit its own configuration; get it anew.") from None
    return Codec(autoencoder.to(device), prior.to(device), tensors["marginals"], about["name"])


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        raise FileError(
            f"{path} is not a whole safetensors file: it is cut short, damaged or of another kind; name another one."
        ) from None


def _of_training(path: Path, device: str | torch.device) -> "Codec":
    from vitrail.compress.codec import Codec

    task = open_codec_task(path)
    if task.prior is None:
        raise VitrailError(
            f"{path} has an autoencoder without a masked image model; train one on it with the recipe compress_prior."
        )
    histogram: Integers = integer_histogram(task.prior.marginal.cpu().numpy())
    return Codec(task.autoencoder.to(device), task.prior.to(device), histogram, path.name)
