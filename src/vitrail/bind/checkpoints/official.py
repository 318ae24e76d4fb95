"""The layout of the official ImageBind's state dict, and ours."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.bind.modalities import MODALITIES
from vitrail.bind.modality import Modality
from vitrail.bind.model import LARGEST_SCALE, SIX, ImageBind, ImageBindConfig
from vitrail.download import RemoteFile
from vitrail.errors import FileError, VitrailError

PUBLISHED = {
    "imagebind_huge": RemoteFile(
        "imagebind_huge",
        "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
        "imagebind_huge.pth",
        notice=(
            "The weights imagebind_huge are Meta's, under the licence CC BY-NC-SA 4.0: not for commercial use "
            "(https://creativecommons.org/licenses/by-nc-sa/4.0/)."
        ),
    )
}
"""Models that load by name."""

Settings = Mapping[str, Mapping[str, Any]]
"""Name of a sense -> fields of its `Modality` that differ from what a file shows."""

_HEADS = {1664: 16, 1408: 16, 1280: 16, 1024: 16, 768: 12, 512: 8, 384: 8}  # by width; of CLIP's and ImageBind's
_STEMS = {"image": "rgbt_stem", "audio": "rgbt_stem", "thermal": "rgbt_stem", "depth": "depth_stem", "imu": "imu_stem"}
_CAUSAL_MASK = "modality_preprocessors.text.mask"  # a constant

_BLOCK = {
    "norm_1.weight": "attention_norm.weight",
    "norm_1.bias": "attention_norm.bias",
    "attn.in_proj_weight": "attention.query_key_value.weight",
    "attn.in_proj_bias": "attention.query_key_value.bias",
    "attn.out_proj.weight": "attention.projection.weight",
    "attn.out_proj.bias": "attention.projection.bias",
    "norm_2.weight": "feed_forward_norm.weight",
    "norm_2.bias": "feed_forward_norm.bias",
    "mlp.fc1.weight": "feed_forward.expand.weight",
    "mlp.fc1.bias": "feed_forward.expand.bias",
    "mlp.fc2.weight": "feed_forward.contract.weight",
    "mlp.fc2.bias": "feed_forward.contract.bias",
}
_EXTRA = {"attn.bias_k": "attention.extra_key", "attn.bias_v": "attention.extra_value"}


def head_count(width: int) -> int:
    """Heads of the attention in published encoders of this width.

    Raises:
        VitrailError: none of this width is known.
    """
    if width not in _HEADS:
        raise VitrailError(
            f"How many heads an encoder of {width} channels has cannot be seen in its weights; give the numbers, "
            "as in settings={'image': {'heads': 4}}, or --set image.heads=4."
        )
    return _HEADS[width]


def official_keys(name: str, depth: int) -> dict[str, str]:
    """Keys of one sense, one of the six, with so many blocks: ours -> the official ones."""
    theirs = "vision" if name == "image" else name
    stem, trunk, head = (f"modality_{part}.{theirs}" for part in ("preprocessors", "trunks", "heads"))
    keys = {}
    if name == "text":
        keys["stem.tokens.weight"] = f"{stem}.token_embedding.weight"
    else:
        keys["stem.class_token"] = f"{stem}.cls_token"
        keys["stem.patches.weight"] = f"{stem}.{_STEMS[name]}.proj{'.1' if name == 'image' else ''}.weight"
    if name in ("text", "imu"):
        keys["stem.positions"] = f"{stem}.pos_embed"
    else:
        keys["stem.positions.table"] = f"{stem}.pos_embedding_helper.pos_embed"
    for part in ("weight", "bias"):
        if name == "image":
            keys[f"norm_before.{part}"] = f"{trunk}.pre_transformer_layer.0.{part}"
        elif name != "text":
            keys[f"stem.norm.{part}"] = f"{stem}.{_STEMS[name]}.norm_layer.{part}"
        keys[f"norm.{part}"] = f"{head}.proj.0.{part}" if name == "text" else f"{head}.0.{part}"
    block = _BLOCK if name in ("image", "text") else _BLOCK | _EXTRA
    for number in range(depth):
        for official, ours in block.items():
            keys[f"blocks.{number}.{ours}"] = f"{trunk}.blocks.{number}.{official}"
    keys["head.weight"] = f"{head}.{ {'text': 'proj.1', 'imu': '3'}.get(name, '2') }.weight"
    keys = {f"encoders.{name}.{ours}": official for ours, official in keys.items()}
    if name != "image":
        keys[f"scales.{name}.log_scale"] = f"modality_postprocessors.{name}.1.log_logit_scale"
    return keys


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Whether this is a state dict of the official ImageBind."""
    return any(key.startswith("modality_preprocessors.") for key in tensors)


def from_official(
    tensors: Mapping[str, Tensor], settings: Settings, where: str
) -> tuple[ImageBindConfig, dict[str, Tensor]]:
    """The configuration that fits an official state dict of any size, and its tensors under our keys.

    Args:
        tensors: of all six senses, or of some.
        settings: what shapes do not show, such as heads of unusual widths.
        where: the file's name, for messages.

    Raises:
        VitrailError: keys are missing or left over, or heads are not known.
    """
    modalities: dict[str, Modality] = {}
    state: dict[str, Tensor] = {}
    left = set(tensors) - {_CAUSAL_MASK}
    for name in SIX:
        keys = official_keys(name, 0)
        if keys[f"encoders.{name}.head.weight"] not in tensors:
            continue
        trunk = f"modality_trunks.{'vision' if name == 'image' else name}.blocks."
        blocks = {re.match(r"\d+", key.removeprefix(trunk))[0] for key in tensors if key.startswith(trunk)}  # type: ignore[index]
        keys = official_keys(name, len(blocks))
        if missing := sorted(set(keys.values()) - left):
            raise FileError(
                f"{where} lacks {missing[0]} and {len(missing) - 1} more of the {name} encoder; fetch it anew."
            )
        found = {ours: _ours(name, ours, tensors[official]) for ours, official in keys.items()}
        left -= set(keys.values())
        shown = {re.sub(r"^\w+\.\w+\.", "", ours): tensor for ours, tensor in found.items()}
        modalities[name] = shown_modality(name, shown, settings.get(name, {}))
        dimension = len(shown["head.weight"])
        state |= found
    if left or not modalities:
        odd = min(left, default="nothing else")
        raise FileError(f"{where} is no official ImageBind: it holds {odd} ({len(left)} such keys); check the file.")
    return ImageBindConfig(dimension, modalities), state


def to_official(model: ImageBind) -> dict[str, Tensor]:
    """The state dict of a model of (some of) the six senses in the official layout, without the causal mask.

    Raises:
        VitrailError: the model has a sense or a part that the official one does not have.
    """
    state = model.state_dict()
    official = {}
    for name, modality in model.config.modalities.items():
        if name not in SIX:
            raise VitrailError(f"The official layout has no place for {name}; save the model in ours.")
        for ours, theirs in official_keys(name, modality.depth).items():
            if ours not in state:
                raise VitrailError(f"The official layout needs {theirs}, which this model lacks; save it in ours.")
            official[theirs] = _theirs(name, ours, state.pop(ours))
    if state:
        raise VitrailError(f"The official layout has no place for {min(state)}; save the model in ours.")
    return official


def shown_modality(name: str, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> Modality:
    """The configuration that the tensors of an encoder, under our keys, show.

    Args:
        name: of one of the six senses.
        tensors: of its encoder, and `log_scale` where it has a temperature.
        given: fields that are set whatever the tensors show.

    Raises:
        VitrailError: heads are not known, or a field is out of its range.
    """
    width = tensors["head.weight"].shape[1]
    fields: dict[str, Any] = {"width": width, "depth": sum(key.endswith("feed_forward.expand.bias") for key in tensors)}
    fields |= {**_sizes(name, tensors), **given}
    if "heads" not in given:
        fields["heads"] = head_count(width)
    if "log_scale" in tensors and "temperature" not in given:
        fields["temperature"] = max(round(math.exp(-float(tensors["log_scale"])), 6), 1 / LARGEST_SCALE)
    return dataclasses.replace(MODALITIES[name](), **fields)


def _sizes(name: str, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Fields of the stems whose sizes are configuration."""
    if name == "text":
        return {"length": tensors["stem.positions"].shape[1]}
    if name not in ("image", "depth", "thermal"):
        return {}
    patch_size = tensors["stem.patches.weight"].shape[-1]
    size = math.isqrt(tensors["stem.positions.table"].shape[1] - 1) * patch_size
    return {"patch_size": patch_size, "size": size} if name == "image" else {"size": size}


def _ours(name: str, key: str, tensor: Tensor) -> Tensor:
    if key.endswith((".extra_key", ".extra_value", ".log_scale")):
        return tensor.reshape(() if key.endswith(".log_scale") else -1)
    if key.endswith(".stem.patches.weight"):
        if name == "image":  # [d, C, T, P, P], time among the channels
            return tensor.flatten(1, 2)
        if name == "imu":  # [d, C * K]
            return tensor.unflatten(1, (6, -1))
    return tensor


def _theirs(name: str, key: str, tensor: Tensor) -> Tensor:
    if key.endswith((".extra_key", ".extra_value")):
        return tensor.view(1, 1, -1)
    if key.endswith(".stem.patches.weight"):
        if name == "image":
            return tensor.unflatten(1, (3, -1))
        if name == "imu":
            return tensor.flatten(1)
    return tensor
