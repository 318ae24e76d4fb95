"""CLIP's and OpenCLIP's weights as the image and text encoders of a model (Section 6.3.3)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.bind.checkpoints.official import Settings, shown_modality
from vitrail.bind.model import ImageBindConfig
from vitrail.errors import FileError

NORM_EPSILON = 1e-5
"""Of CLIP's LayerNorms."""

FRAMES = 2
"""That a patch of the image encoder goes through."""

_BLOCK = {
    "attention_norm.weight": "ln_1.weight",
    "attention_norm.bias": "ln_1.bias",
    "attention.query_key_value.weight": "attn.in_proj_weight",
    "attention.query_key_value.bias": "attn.in_proj_bias",
    "attention.projection.weight": "attn.out_proj.weight",
    "attention.projection.bias": "attn.out_proj.bias",
    "feed_forward_norm.weight": "ln_2.weight",
    "feed_forward_norm.bias": "ln_2.bias",
    "feed_forward.expand.weight": "mlp.c_fc.weight",
    "feed_forward.expand.bias": "mlp.c_fc.bias",
    "feed_forward.contract.weight": "mlp.c_proj.weight",
    "feed_forward.contract.bias": "mlp.c_proj.bias",
}
_IMAGE = {
    "stem.class_token": "class_embedding",
    "stem.patches.weight": "conv1.weight",
    "stem.positions.table": "positional_embedding",
    "norm_before.weight": "ln_pre.weight",
    "norm_before.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
    "head.weight": "proj",
}
_TEXT = {
    "stem.tokens.weight": "token_embedding.weight",
    "stem.positions": "positional_embedding",
    "norm.weight": "ln_final.weight",
    "norm.bias": "ln_final.bias",
    "head.weight": "text_projection",
}
_CONSTANTS = {"input_resolution", "context_length", "vocab_size"}
_PATCHES = "visual.conv1.weight"


def is_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Whether this is a state dict of a CLIP with a ViT, bare or in a training checkpoint of OpenCLIP."""
    return any(key.endswith(_PATCHES) and key.removesuffix(_PATCHES) + "visual.proj" in tensors for key in tensors)


def from_clip(
    tensors: Mapping[str, Tensor], settings: Settings, where: str
) -> tuple[ImageBindConfig, dict[str, Tensor]]:
    """A configuration of image and text that computes what a CLIP does, and its tensors under our keys.

    Patches are inflated over the frames of a clip, so that frames that are all the same give what one picture gives.

    Args:
        tensors: of OpenCLIP's layout, which is CLIP's.
        settings: what tensors do not show, such as heads. OpenAI's own files tell themselves, and their activation is
            quick_gelu; in a state dict that leaves out `input_resolution` nothing tells, and {"activation":
            "quick_gelu"} must be given for both senses.
        where: the file's name, for messages.

    Raises:
        VitrailError: keys are missing or left over, or heads are not known.
    """
    prefix = next(key for key in tensors if key.endswith(_PATCHES)).removesuffix(_PATCHES)
    bare = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    text = "text." if "text.token_embedding.weight" in bare else ""
    left = {key for key in bare if not key.endswith("attn_mask")} - _CONSTANTS - {"logit_scale"}
    shown: dict[str, dict[str, Tensor]] = {}
    for name, room, outside in (("image", "visual.", _IMAGE), ("text", text, _TEXT)):
        blocks = f"{room}transformer.resblocks."
        depth = len({key.removeprefix(blocks).split(".")[0] for key in bare if key.startswith(blocks)})
        keys = {ours: f"{room}{theirs}" for ours, theirs in outside.items()}
        for number in range(depth):
            keys |= {f"blocks.{number}.{ours}": f"{blocks}{number}.{theirs}" for ours, theirs in _BLOCK.items()}
        if missing := sorted(set(keys.values()) - left):
            raise FileError(f"{where} lacks {missing[0]}, so it is no CLIP that we know; take one with a ViT.")
        left -= set(keys.values())
        shown[name] = {ours: bare[theirs] for ours, theirs in keys.items()}
    if left or "logit_scale" not in bare:
        odd = min(left, default="no logit_scale")
        raise FileError(f"{where} holds {odd}, so it is no CLIP that we know; take one with a plain ViT.")
    for encoder in shown.values():
        encoder["head.weight"] = encoder["head.weight"].T.contiguous()
        for key in encoder.keys() & {"stem.class_token", "stem.positions.table", "stem.positions"}:
            encoder[key] = encoder[key].view(1, -1, encoder[key].shape[-1])
    kernel = shown["image"]["stem.patches.weight"]
    shown["image"]["stem.patches.weight"] = (kernel[:, :, None] / FRAMES).expand(-1, -1, FRAMES, -1, -1).flatten(1, 2)
    fields: dict[str, Any] = {"norm_epsilon": NORM_EPSILON}
    if "input_resolution" in bare:
        fields["activation"] = "quick_gelu"
    modalities = {
        name: shown_modality(name, encoder, fields | dict(settings.get(name, {}))) for name, encoder in shown.items()
    }
    state = {f"encoders.{name}.{key}": tensor for name, encoder in shown.items() for key, tensor in encoder.items()}
    state["scales.text.log_scale"] = bare["logit_scale"]
    return ImageBindConfig(len(shown["image"]["head.weight"]), modalities), state
