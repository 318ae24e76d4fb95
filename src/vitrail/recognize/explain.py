"""Looking into XCiT: what each head of the class token attends to, and how large each patch's queries and keys are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.backbones.xcit import XCiT
from vitrail.data.corrupt import CorruptSample
from vitrail.data.images import read_image
from vitrail.errors import FileError, VitrailError
from vitrail.layers.blocks import ClassAttentionBlock, XCiTBlock
from vitrail.plots import check_figure, new_figure, plain, save_figure
from vitrail.recognize.classify import Classifier

Kind = Literal["class-attention", "norms"]

MOST = 200
"""Pictures in a drawing: a PNG ends at 227 columns, and of formats that end before `save_figure` says so."""


@torch.inference_mode()
def class_attention(model: XCiT, images: Tensor, block: int = -1) -> Tensor:
    """What each head of the class token takes from each patch (Figure 3.6).

    Args:
        model: with class attention.
        images: [B, 3, H, W], normalised.
        block: which class attention block; by default the last.

    Returns:
        [B, heads, h, w], at least 0; each head's map sums to at most 1: the rest is taken from the class token itself.

    Raises:
        VitrailError: the model has no class attention or no such block.
    """
    if not model.class_blocks:
        raise VitrailError("The model has no class attention; explain one that was trained to classify.")
    _check_number(block, len(model.class_blocks), "class attention block")
    features = model.forward_features(images)
    tokens = torch.cat([model.class_token.expand(len(images), -1, -1), features.patches], dim=1)
    blocks = list(model.class_blocks)
    chosen = blocks[block]
    for earlier in blocks[: blocks.index(chosen)]:
        tokens = earlier(tokens)
    assert isinstance(chosen, ClassAttentionBlock)
    weights = chosen.attention.weights(chosen.attention_norm(tokens))
    return weights[:, :, 1:].unflatten(2, features.grid)


@torch.inference_mode()
def query_key_norms(model: XCiT, images: Tensor, layer: int = -1) -> tuple[Tensor, Tensor]:
    """The norms of each patch's queries and keys over all channels (Figure 3.7).

    Taken after each channel has been normalised over the patches, as XCA does it: their squares sum to d.

    Args:
        model: with cross-covariance attention.
        images: [B, 3, H, W], normalised.
        layer: which block's attention; by default the last.

    Returns:
        Norms of queries and of keys, [B, h, w] each, at least 0.

    Raises:
        VitrailError: the model has no cross-covariance attention or no such layer.
    """
    if not model.config.cross_covariance:
        raise VitrailError("The model has no cross-covariance attention, so there are no queries and keys to show.")
    _check_number(layer, len(model.blocks), "layer")
    tokens, grid = model.embed(images)
    blocks = list(model.blocks)
    chosen = blocks[layer]
    for earlier in blocks[: blocks.index(chosen)]:
        tokens = earlier(tokens, grid)
    assert isinstance(chosen, XCiTBlock) and chosen.attention
    query, key, _ = chosen.attention.queries_keys_values(chosen.attention_norm(tokens))  # [B, heads, d / heads, N]
    query_norm, key_norm = (F.normalize(x, dim=-1).flatten(1, 2).norm(dim=1).unflatten(1, grid) for x in (query, key))
    return query_norm, key_norm


def _check_number(number: int, count: int, what: str) -> None:
    if not -count <= number < count:
        raise VitrailError(f"There is no {what} {number}: the model has {count}, numbered 0 to {count - 1}.")


def explain(
    classifier: Classifier, paths: Sequence[Path], output: str | Path, kind: Kind = "class-attention", layer: int = -1
) -> None:
    """Draws each picture, as the model sees it, over its maps: one column a picture.

    Args:
        classifier: its model an XCiT.
        paths: pictures.
        output: the drawing, PNG or whatever the suffix says.
        kind: the attention of each head of the class token (Figure 3.6), or the norms of queries and keys (Figure 3.7).
        layer: which class attention block, or which layer's queries and keys.

    Raises:
        VitrailError: the model is no XCiT, has no such layer, a picture cannot be read, or there are too many.
    """
    model, transform = classifier.model, classifier.transform
    if not isinstance(model, XCiT):
        raise VitrailError("Only an XCiT's attention can be drawn, and this model is none.")
    check_figure(output)
    if len(paths) > MOST:
        raise VitrailError(f"One drawing holds {MOST} pictures, and there are {len(paths)}; draw fewer, or several.")
    prepare = transform.build()
    device = next(model.parameters()).device
    columns = []
    for path in paths:
        try:
            image = prepare(read_image(path))
        except CorruptSample as error:
            raise FileError(f"Cannot read {path}: {error.reason}; leave it out.") from None
        batch = image[None].to(device)
        if kind == "class-attention":
            heads = class_attention(model, batch, layer)[0]
            maps = [(f"head {number}", head) for number, head in enumerate(heads)]
        else:
            query_norm, key_norm = query_key_norms(model, batch, layer)
            maps = [("query norm", query_norm[0]), ("key norm", key_norm[0])]
        deviation, mean = (torch.tensor(x).view(-1, 1, 1) for x in (transform.std, transform.mean))
        picture = (image * deviation + mean).clamp(0, 1).permute(1, 2, 0)
        columns.append([(plain(path.name), picture, None), *((title, picture, overlay) for title, overlay in maps)])
    _draw(columns, output)


def _draw(columns: Sequence[Sequence[tuple[str, Tensor, Tensor | None]]], path: str | Path) -> None:
    """Per column its cells from top to bottom: title, picture [H, W, 3], and the map [h, w] to lay over it, if any."""
    rows = max(len(column) for column in columns)
    figure = new_figure(2.4 * len(columns), 2.6 * rows)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, column in enumerate(columns):
        for axis, (title, picture, overlay) in zip(axes[:, number], column, strict=True):
            axis.set_title(title, fontsize=9)
            axis.imshow(picture.numpy())
            if overlay is not None:
                # Each map has its own scale: heads are compared by where they look, not by how sharply.
                extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
                axis.imshow(overlay.cpu().numpy(), extent=extent, alpha=0.6, cmap="inferno", interpolation="bilinear")
    save_figure(figure, path)
