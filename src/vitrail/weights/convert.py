"""Other people's state dicts into our modules, and ours into timm's.

Five layouts are known by their keys: the official XCiT files, timm's XCiT, timm's and DeiT's ViT, torchvision's ResNet,
and our own. They may lie at any depth of a file: bare, under `model`, `state_dict` or `teacher`, with `module.` or
`backbone.` before every key, or as the backbone of a detector, a segmenter or one of our training checkpoints.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.backbones.vit import ViT
from vitrail.backbones.xcit import XCiT
from vitrail.errors import FileError
from vitrail.layers.positions import LearnedPositions, resample_positions

Head = Literal["load", "skip", "auto"]

# Pieces of keys, theirs and ours; whole pieces between dots are replaced, the longest that fits first.
_BOTH = {
    "patch_embed.proj": "patches",
    "cls_token": "class_token",
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
    "attn": "attention",
    "qkv": "query_key_value",
    "proj": "projection",
    "mlp": "feed_forward",
    "fc1": "expand",
    "fc2": "contract",
}
_XCIT = _BOTH | {
    "pos_embed.token_projection": "positions.projection",
    "cls_attn_blocks": "class_blocks",
    "norm3": "local_norm",
    "gamma1": "attention_scale",
    "gamma2": "feed_forward_scale",
    "gamma3": "local_scale",
    "q": "query",
    "local_mp": "local",
    "local_mp.bn": "local.norm",
    "conv1": "convolution1",
    "conv2": "convolution2",
}
_VIT = _BOTH | {
    "pos_embed": "positions.table",
    "dist_token": "distillation_token",
    "head_dist": "head_distillation",
    "ls1.gamma": "attention_scale",
    "ls2.gamma": "feed_forward_scale",
}
_MEAN_POOLED_VIT = _VIT | {"fc_norm": "norm"}  # timm has the norm after the mean under another name

_BUILD_IT = "build the one that it is for (in training: --model, or the options of its backbone)"

# A weight that pictures meet early tells where in a file a backbone lies, and in whose layout.
_FIRST_WEIGHT = re.compile(
    r"(?P<prefix>(?:.*?\.)?)"
    r"(?:(?P<ours>patches|network\.layer1\.0\.conv1)|(?P<theirs>patch_embed\.proj|layer1\.0\.conv1))(?:\.0\.0)?\.weight"
)

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
class BackboneWeights:
    """The weights of one backbone, as found in a file."""

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


def find_backbone(tensors: Mapping[str, Tensor], where: str = "the state dict") -> BackboneWeights:
    """The backbone among `tensors` under our keys; averaged weights (ema, teacher) before others.

    Raises:
        FileError: no layout that we know, or two tensors for one place.
    """
    found = [match for key in tensors if (match := _FIRST_WEIGHT.fullmatch(key))]
    if not found:
        raise FileError(
            f"{where} holds no backbone in a known layout (official XCiT, timm's, torchvision's ResNet or Vitrail's); "
            f"its keys are {_some(tensors) or 'none'}."
        )
    match = min(
        found, key=lambda match: (not {"ema", "teacher"} & set(re.split(r"[._]", match["prefix"])), match.end())
    )
    names = {
        key: name
        for key in tensors
        if (name := key.removeprefix(match["prefix"])) != key or not match["prefix"]
        if not re.match(r"fpn\d\.", name)  # the official detectors keep their pyramid inside the backbone
    }
    layout = "Vitrail" if match["ours"] else _layout(names.values())
    translate = _TRANSLATIONS[layout]
    origin = {translate(name): key for key, name in names.items()}
    if len(origin) < len(names):
        doubles = [key for key, name in names.items() if origin[translate(name)] != key]
        raise FileError(f"{where} ({layout}) has two tensors for one place, with {_some(doubles)}; remove one of them.")
    state = {name: tensors[key] for name, key in origin.items()}
    left_aside = tuple(key for key in tensors if key not in names)
    return BackboneWeights(*_split_class_attention(state, origin), left_aside, layout)


def load_backbone(
    model: nn.Module, backbone: BackboneWeights, head: Head = "load", where: str = "the state dict"
) -> LoadReport:
    """Fills `model` with all of `backbone`.

    Args:
        model: a backbone.
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
    fresh = {key for key in wanted if _is_head(key)} if head == "skip" else set()
    # Files of before PyTorch 0.4.1 do not count the batches, and nothing that we do asks for their number.
    uncounted = {key for key in wanted if key.endswith(".num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in fresh | uncounted]
    unexpected = [backbone.origin[key] for key in state if key not in wanted]
    if {"head.weight", "head.bias"} <= {*missing} and all(map(_is_head, missing)) and not unexpected:
        raise FileError(f'{where} has no head; load it with head="skip", or into a model with num_classes=0.')
    if missing or unexpected:
        lacks = f"it lacks {_some(missing)}" if missing else ""
        extra = f"the model has no place for its {_some(unexpected)}" if unexpected else ""
        differs = ", ".join(filter(None, (lacks, extra)))
        raise FileError(f"{where} ({backbone.layout}) is for another model: {differs}; {_BUILD_IT}.")
    if isinstance(positions := getattr(model, "positions", None), LearnedPositions):
        state["positions.table"] = _fit_positions(state["positions.table"], positions)
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise FileError(f"{where} holds {key} in a form that is not plain numbers; save it dense and as floats.")
        if tensor.shape != wanted[key].shape:
            raise FileError(_shapes_differ(where, key, tensor, wanted[key]))
    model.load_state_dict(wanted | state)
    return LoadReport(
        backbone.layout,
        (*backbone.left_aside, *(backbone.origin[key] for key in sorted(unused))),
        tuple(sorted(fresh)),
    )


def to_timm(model: XCiT | ViT) -> dict[str, Tensor]:
    """The state dict of an XCiT or ViT in timm's layout; timm's model of the same name loads it with strict=True.

    Networks that timm does not have, with an efficient attention or a part left out, have no counterpart there.
    """
    vit = _MEAN_POOLED_VIT if isinstance(model, ViT) and model.config.pooling == "mean" else _VIT
    table = {ours: timm for timm, ours in (_XCIT if isinstance(model, XCiT) else vit).items()}
    state = {}
    for key, tensor in model.state_dict().items():
        if re.fullmatch(r"class_blocks\.\d+\.attention\.key_value\.(weight|bias)", key):
            for letter, part in zip("kv", tensor.chunk(2), strict=True):
                state[_rename(key.replace("key_value", letter), table)] = part.clone()
        else:
            state[_rename(key, table)] = tensor
    return state


def _layout(names: Iterable[str]) -> str:
    names = set(names)
    if "pos_embeder.token_projection.weight" in names:
        return "official XCiT"
    if "pos_embed.token_projection.weight" in names:
        return "timm XCiT"
    return "timm ViT" if "patch_embed.proj.weight" in names else "torchvision ResNet"


def _rename(name: str, table: dict[str, str]) -> str:
    pieces = "|".join(re.escape(piece) for piece in sorted(table, key=len, reverse=True))
    return re.sub(rf"(?<![^.])(?:{pieces})(?![^.])", lambda match: table[match[0]], name)


_TRANSLATIONS: dict[str, Callable[[str], str]] = {
    "Vitrail": lambda name: name,
    "official XCiT": lambda name: _rename(name.replace("pos_embeder.", "pos_embed."), _XCIT),
    "timm XCiT": lambda name: _rename(name, _XCIT),
    "timm ViT": lambda name: _rename(name, _MEAN_POOLED_VIT),
    "torchvision ResNet": lambda name: name.replace("fc.", "head.") if name.startswith("fc.") else f"network.{name}",
}


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
    if _is_head(key):
        return head == "skip" or "head.weight" not in wanted
    dense = "class_token" not in wanted and "norm.weight" not in wanted
    return dense and key.split(".")[0] in ("class_token", "class_blocks", "norm")


def _is_head(key: str) -> bool:
    return key.startswith(("head.", "head_distillation."))


def _fit_positions(table: Tensor, positions: LearnedPositions) -> Tensor:
    """Learned positions of a square grid for the grid of the model, as timm does it."""
    side = math.isqrt(max(table.shape[1] - positions.leading, 0))
    if (side, side) == positions.grid or side * side + positions.leading != table.shape[1]:
        return table
    return resample_positions(table, positions.leading, (side, side), positions.grid)


def _shapes_differ(where: str, key: str, tensor: Tensor, wanted: Tensor) -> str:
    if _is_head(key):
        return (
            f"{where} is for {len(tensor)} classes and the model for {len(wanted)}; build the model with "
            f'num_classes={len(tensor)}, or load it with head="skip" to train a new head.'
        )
    shapes = f"{key} is {list(tensor.shape)} there and {list(wanted.shape)} in the model"
    return f"{where} is for another model: {shapes}; {_BUILD_IT}."


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
