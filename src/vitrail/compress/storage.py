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
from torch import Tensor, nn

from vitrail.compress.autoencoder import Autoencoder, AutoencoderConfig
from vitrail.compress.coding.frequencies import Integers, integer_histogram
from vitrail.compress.prior import Prior, PriorConfig
from vitrail.compress.training.autoencoder import open_codec_task
from vitrail.config import from_json, to_json
from vitrail.engine.checkpoint import load as load_checkpoint
from vitrail.errors import FileError, VitrailError
from vitrail.files import atomic_path

if TYPE_CHECKING:
    from vitrail.compress.codec import Codec

DEFAULT_MODEL = "photos_2"
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
    source = DEFAULT_MODEL if source is None else source
    path = _SHIPPED / f"{source}.safetensors" if source in shipped_codecs() else Path(source)
    if not path.exists():
        listed = ", ".join(shipped_codecs()) or "none in this installation"
        raise FileError(f"There is no codec {source}; name a shipped one ({listed}), a file or the folder of a run.")
    if path.is_dir() or METADATA not in (metadata := _metadata(path)):
        return _of_training(path, device)
    try:
        about = json.loads(metadata[METADATA])
        configurations, name = [from_json(about[room]) for room in ("autoencoder", "prior")], str(about["name"])
        autoencoder, prior = _build(*configurations)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
        raise FileError(
            f"{path} does not describe a codec that this version of Vitrail can build; get it anew."
        ) from None
    except VitrailError as error:
        raise FileError(f"{path} does not describe a codec: {error}") from None
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
    whole = nn.ModuleDict({"autoencoder": autoencoder, "prior": prior})
    whole.register_buffer("marginals", torch.empty(autoencoder.parts, autoencoder.centroids, device="meta"))
    wanted = whole.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [key for key in sorted(wanted.keys() & tensors.keys()) if wanted[key].shape != tensors[key].shape]
    if wrong:
        raise FileError(f"{path} does not fit its own configuration ({wrong[0]} is one of {len(wrong)}); get it anew.")
    if broken := sorted(key for key, value in tensors.items() if not value.isfinite().all()):
        raise FileError(f"{path} holds numbers that are not finite (in {broken[0]}), so it shows nothing; get it anew.")
    state = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    whole.load_state_dict(state, assign=True)
    return _on_device(autoencoder, prior, tensors["marginals"], name, device)


def _build(autoencoder: AutoencoderConfig, prior: PriorConfig) -> tuple[Autoencoder, Prior]:
    """The networks without memory for their weights: whatever a file claims, it gets no more than it brings."""
    if not isinstance(autoencoder, AutoencoderConfig) or not isinstance(prior, PriorConfig):
        raise TypeError("a codec has an autoencoder and a masked image model")
    with torch.device("meta"):
        return autoencoder.build(), prior.build(autoencoder.parts, autoencoder.centroids)


def _on_device(
    autoencoder: Autoencoder, prior: Prior, marginals: Integers | Tensor, name: str, device: str | torch.device
) -> "Codec":
    from vitrail.compress.codec import Codec

    without_float64 = torch.device(device).type == "mps"  # which the prior needs
    return Codec(autoencoder.to(device), prior.to("cpu" if without_float64 else device), marginals, name)


def is_codec(source: str | Path) -> bool:
    """Whether `load_codec` is who should open this; what cannot be opened is left to others to complain about."""
    if source in shipped_codecs():
        return True
    try:
        path = Path(source)
        if path.is_file() and METADATA in _metadata(path):
            return True
        configuration = load_checkpoint(path).header.configuration
    except FileError:
        return False
    return isinstance(configuration, dict) and str(configuration.get("type")).startswith("compress.")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        raise FileError(
            f"{path} is not a whole safetensors file: it is cut short, damaged or of another kind; name another one."
        ) from None


def _of_training(path: Path, device: str | torch.device) -> "Codec":
    """With the values that `save_codec` would store, so that the files of both are the same."""
    task = open_codec_task(path)
    if task.prior is None:
        raise VitrailError(
            f"{path} has an autoencoder without a masked image model; train one on it with the recipe compress_prior."
        )
    histogram: Integers = integer_histogram(task.prior.marginal.cpu().numpy())
    for module in (task.autoencoder, task.prior):
        for name, value in module.state_dict().items():
            value.copy_(_stored(value, True, name))
    return _on_device(task.autoencoder, task.prior, histogram, path.name, device)
