"""One picture as SplitMask or BEiT sees it, and what it takes the missing patches for."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.augmentation import EvalTransform
from vitrail.data.corrupt import CorruptSample
from vitrail.data.images import read_image
from vitrail.errors import FileError
from vitrail.plots import check_figure, new_figure, plain, save_figure
from vitrail.pretrain.masks import Masks, grid_of
from vitrail.pretrain.pretraining import MaskedTask

_GREY = 0.5


@torch.no_grad()
def inpainted(task: MaskedTask, image: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor, float]]:
    """For each set of patches that the network is shown, what it sees and how it fills the rest.

    A word has a direction and no length: it is drawn with the mean length of the patches that were seen.

    Args:
        task: in evaluation mode, on the CPU.
        image: [3, H, W], normalised; H and W multiples of the patch size.
        mask: [h, w] bool, the hidden patches.

    Returns:
        The picture with holes, NaN, and the picture with words in their place, [3, H, W] each, normalised; and the
        share of missing words that were predicted right.
    """
    tokenizer, side = task.tokenizer, task.backbone.patch_size
    batch, grid = image[None], grid_of(image, side)
    true = tokenizer(batch).flatten(1)
    lengths = tokenizer.patches(batch).norm(dim=3).flatten(1)
    results = []
    for missing, logits in task.predict(batch, mask[None]):
        guesses = logits.argmax(dim=2)
        holes = torch.zeros(1, true.shape[1], dtype=torch.bool).scatter(1, missing, True)
        words = tokenizer.words(true.scatter(1, missing, guesses)) * lengths[~holes].mean()  # [1, N, 3, p, p]
        drawn = words.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        filled = F.interpolate(
            drawn, image.shape[1:], mode="bilinear" if drawn.shape[2:] != image.shape[1:] else "nearest"
        )
        covered = holes.view(1, 1, *grid).repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        seen = torch.where(covered, torch.nan, batch)
        right = float((guesses == true.gather(1, missing)).double().mean())
        results.append((seen[0], torch.where(covered, filled, batch)[0], right))
    return results


def show(
    task: MaskedTask, masks: Masks, transform: EvalTransform, picture: Path, output: str | Path, seed: int = 0
) -> None:
    """Draws the picture, what the network sees of it, and the predicted words in place of what it does not.

    Args:
        task: in evaluation mode, on the CPU.
        masks: how the mask is drawn.
        transform: preparation of the picture.
        picture: a file.
        output: the drawing, PNG or whatever the suffix says.
        seed: of the mask.

    Raises:
        VitrailError: the picture cannot be read, the words have no pictures, or the drawing cannot be written.
    """
    check_figure(output)
    try:
        image = transform.build()(read_image(picture))
    except CorruptSample as error:
        raise FileError(f"Cannot read {picture}: {error.reason}; take another picture.") from None
    side = task.backbone.patch_size
    image = image[:, : image.shape[1] // side * side, : image.shape[2] // side * side]
    random.seed(seed)
    results = inpainted(task, image, task_mask := masks.draw(grid_of(image, side)))
    cells: list[tuple[str, Tensor]] = [(plain(picture.name), image)]
    for (seen, filled, right), name in zip(results, "AB" if len(results) == 2 else [""], strict=True):
        hidden = int(task_mask.sum()) if name != "B" else int((~task_mask).sum())
        cells += [(f"{name} seen".strip(), seen), (f"{hidden} patches filled in\n{100 * right:.0f} % right", filled)]
    deviation, mean = (torch.tensor(x).view(-1, 1, 1) for x in (transform.std, transform.mean))
    figure = new_figure(2.4 * len(cells), 2.9)
    for axis, (title, cell) in zip(figure.subplots(1, len(cells)).flat, cells, strict=True):
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
        axis.imshow((cell * deviation + mean).nan_to_num(_GREY).clamp(0, 1).permute(1, 2, 0).numpy())
    save_figure(figure, output)
