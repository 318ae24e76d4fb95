"""Other people's state dicts into our modules, and ours into timm's.

Four layouts are known by their keys: the official XCiT files, timm's XCiT, timm's and DeiT's ViT, and our own. They
may lie at any depth of a file: bare, under `model`, `state_dict` or `teacher`, with `module.` or `backbone.` before
every key, or as the backbone of a detector, a segmenter or one of our training checkpoints.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import Tensor, nn

from vitrail.errors import FileError

Head = Literal["load", "skip", "auto"]

# Pieces of keys, theirs and ours; whole pieces between dots are replaced, the longest that fits first.
_TIMM_TO_OURS = {
    "patch_embed.proj": "patches",
    "pos_embed.token_projection": "positions.projection",
    "cls_token": "class_token",
    "cls_attn_blocks": "class_blocks",
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
    "norm3": "local_norm",
    "gamma1": "attention_scale",
    "gamma2": "feed_forward_scale",
    "gamma3": "local_scale",
    "attn": "attention",
    "qkv": "query_key_value",
    "q": "query",
    "proj": "projection",
    "local_mp": "local",
    "local_mp.bn": "local.norm",
    "conv1": "convolution1",
    "conv2": "convolution2",
    "mlp": "feed_forward",
    "fc1": "expand",
    "fc2": "contract",
}
_OURS_TO_TIMM = {ours: timm for timm, ours in _TIMM_TO_OURS.items()}

# The first weight that a picture meets tells where in a file a backbone lies, and in whose layout.
_FIRST_WEIGHT = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<name>patch_embed\.proj|patches)(?:\.0\.0)?\.weight")

_CLASS_ATTENTION = re.compile(r"(class_blocks\.\d+\.attention)\.(query_key_value|query|k|v)\.(weight|bias)")


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys of a file."""

    layout: str
    """Whose layout the file has."""
    left_aside: tuple[str, ...]
    """Keys of the file, as it names them, that are not this model's: other networks in the file, pyramids, heads."""
    fresh: tuple[str, ...]
    """Keys of the model that the file has nothing for and that keep their values: the head, if asked for."""


@dataclass(frozen=True)
class Backbone:
    """A backbone found in a file."""

    state: dict[str, Tensor]
    """Our keys -> tensors."""
    origin: dict[str, str]
    """Our keys -> the file's."""
    left_aside: tuple[str, ...]
    """Keys of the file that belong to something else."""
    layout: str
    """Whose layout it was."""

    @property
    def num_classes(self) -> int:
        """Outputs of the head, 0 without one."""
        return len(self.state["head.weight"]) if "head.weight" in self.state else 0


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors or PyTorch file by their full names, outer keys first, and its metadata.

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
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, safetensors.SafetensorError):
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


def find_backbone(tensors: Mapping[str, Tensor], where: str = "the state dict") -> Backbone:
    """The backbone among `tensors` under our keys; averaged weights (ema, teacher) before others.

    Raises:
        FileError: no layout that we know.
    """
    found = [match for key in tensors if (match := _FIRST_WEIGHT.fullmatch(key))]
    if not found:
        raise FileError(
            f"{where} holds no XCiT or ViT in a known layout (official, timm's or Vitrail's); "
            f"its keys are {_some(tensors) or 'none'}."
        )
    match = min(
        found, key=lambda match: (not {"ema", "teacher"} & set(re.split(r"[._]", match["prefix"])), match.start("name"))
    )
    prefix, ours = match["prefix"], match["name"] == "patches"
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left_aside = []
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or re.match(r"fpn\d\.", name):  # the official detectors keep a pyramid there
            left_aside.append(key)
        else:
            name = name if ours else _rename(name.replace("pos_embeder.", "pos_embed."), _TIMM_TO_OURS)
            state[name], origin[name] = tensor, key
    names = {key.removeprefix(prefix) for key in origin.values()}
    if ours:
        layout = "Vitrail"
    elif "pos_embeder.token_projection.weight" in names:
        layout = "official XCiT"
    elif "pos_embed.token_projection.weight" in names:
        layout = "timm XCiT"
    else:
        layout = "timm ViT"
    return Backbone(*_split_class_attention(state, origin), tuple(left_aside), layout)


def load_backbone(
    model: nn.Module, backbone: Backbone, head: Head = "load", where: str = "the state dict"
) -> LoadReport:
    """Fills `model` with all of `backbone`.

    Args:
        model: an XCiT or a ViT.
        backbone: as `find_backbone` found it.
        head: "load"; "skip" to leave the model's own as it is, for other classes; "auto" to load it where it has the
            model's number of classes, and else to skip it.
        where: the file, for messages.

    Raises:
        FileError: a key of the file has no place in the model, one of the model is not in the file, or two shapes
            differ. The model is not touched then.
    """
    wanted = model.state_dict()
    if head == "auto":
        own = wanted.get("head.weight")
        head = "load" if own is None or len(own) == backbone.num_classes else "skip"
    unused = {key for key in backbone.state if _without_use(key, wanted, head)}
    state = {key: tensor for key, tensor in backbone.state.items() if key not in unused}
    fresh = {key for key in wanted if key.startswith("head.")} if head == "skip" else set()
    missing = [key for key in wanted if key not in state and key not in fresh]
    unexpected = [backbone.origin[key] for key in state if key not in wanted]
    if missing and all(key.startswith("head.") for key in missing) and not unexpected:
        raise FileError(f'{where} has no head; load it with head="skip", or into a model with num_classes=0.')
    if missing or unexpected:
        lacks = f"it lacks {_some(missing)}" if missing else ""
        extra = f"the model has no place for its {_some(unexpected)}" if unexpected else ""
        raise FileError(f"{where} ({backbone.layout}) is for another model: {'; '.join(filter(None, (lacks, extra)))}.")
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise FileError(_shapes_differ(where, key, tensor, wanted[key]))
    model.load_state_dict(wanted | state)
    return LoadReport(
        backbone.layout,
        (*backbone.left_aside, *(backbone.origin[key] for key in sorted(unused))),
        tuple(sorted(fresh)),
    )


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict in timm's layout; timm's model of the same name loads it with strict=True."""
    state = {}
    for key, tensor in model.state_dict().items():
        if re.fullmatch(r"class_blocks\.\d+\.attention\.key_value\.(weight|bias)", key):
            for letter, part in zip("kv", tensor.chunk(2), strict=True):
                state[_rename(key.replace("key_value", letter), _OURS_TO_TIMM)] = part.clone()
        else:
            state[_rename(key, _OURS_TO_TIMM)] = tensor
    return state


def _rename(key: str, table: dict[str, str]) -> str:
    pieces = "|".join(re.escape(piece) for piece in sorted(table, key=len, reverse=True))
    return re.sub(rf"(?<![^.])(?:{pieces})(?![^.])", lambda match: table[match[0]], key)


def _split_class_attention(
    state: dict[str, Tensor], origin: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Class attention as we hold it, queries apart and keys and values together: official files hold all three
    together, timm's each apart, in the order query, key, value."""
    result: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, tensor in state.items():
        match = _CLASS_ATTENTION.fullmatch(key)
        if match is None or match[2] == "query":
            parts = {key: tensor}
        elif match[2] == "query_key_value":
            query, both = tensor.split([len(tensor) // 3, len(tensor) - len(tensor) // 3])
            parts = {f"{match[1]}.query.{match[3]}": query, f"{match[1]}.key_value.{match[3]}": both}
        elif match[2] == "k":
            value = state.get(f"{match[1]}.v.{match[3]}")
            parts = {f"{match[1]}.key_value.{match[3]}": tensor if value is None else torch.cat([tensor, value])}
        else:
            parts = {}
        result |= parts
        sources |= dict.fromkeys(parts, origin[key])
    return result, sources


def _without_use(key: str, wanted: Mapping[str, Tensor], head: Head) -> bool:
    """Whether this key of a file belongs to a part that the model was built without, on purpose."""
    if key.startswith("head."):
        return head == "skip" or "head.weight" not in wanted
    dense = "class_token" not in wanted and "norm.weight" not in wanted
    return dense and key.split(".")[0] in ("class_token", "class_blocks", "norm")


def _shapes_differ(where: str, key: str, tensor: Tensor, wanted: Tensor) -> str:
    if key.startswith("head."):
        return (
            f"{where} is for {len(tensor)} classes and the model for {len(wanted)}; build the model with "
            f'num_classes={len(tensor)}, or load it with head="skip" to train a new head.'
        )
    return f"{where} is for another model: {key} is {list(tensor.shape)} there and {list(wanted.shape)} in the model."


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
