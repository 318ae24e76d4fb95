"""SplitMask: split the patches in two, inpaint each half from the other, match the two (Section 4.4, Figure 4.4)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrail.config import check_range
from vitrail.errors import VitrailError
from vitrail.layers.attention import SelfAttention
from vitrail.layers.blocks import NORM_EPSILON, TransformerBlock
from vitrail.layers.contrastive import info_nce
from vitrail.pretrain.masks import split
from vitrail.pretrain.pretraining import MaskedPretraining, MaskedTask, Prediction, of_patches, word_costs


@dataclass(frozen=True, kw_only=True)
class SplitMask(MaskedPretraining):
    """Pre-training by SplitMask; without `inpaint` or `match`, the ablations of Table 4.8."""

    decoder_depth: int = 2
    """Blocks of the decoder, which has the encoder's width."""
    inpaint: bool = True
    """Predict the words of each half from the other."""
    match: bool = True
    """Match the two descriptions of an image, against those of the other images."""
    temperature: float = 0.2
    """Of the matching, tau."""

    def __post_init__(self) -> None:
        check_range(self, "decoder_depth", least=1)
        check_range(self, "temperature", above=0)
        if not (self.inpaint or self.match):
            raise VitrailError("SplitMask without inpainting and without matching learns nothing; set one of them.")

    def build_task(self) -> "SplitMaskTask":
        """The networks with fresh weights."""
        return SplitMaskTask(self)


class Branch(NamedTuple):
    """What one half of the patches gives.

    Attributes:
        tokens: [B, N, d] of all patches, seen and inpainted, as they leave the decoder.
        missing: [B, n], the numbers of the patches that this branch did not see.
    """

    tokens: Tensor
    missing: Tensor


class SplitMaskTask(MaskedTask):
    """Cross-entropy of the missing words of both branches, and InfoNCE between the means of their tokens."""

    def __init__(self, experiment: SplitMask) -> None:
        super().__init__(experiment)
        self.settings = experiment
        width, heads = experiment.backbone.width, experiment.backbone.heads
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder = nn.ModuleList(
            TransformerBlock(width, SelfAttention(width, heads)) for _ in range(experiment.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.head = nn.Linear(width, experiment.tokenizer.words) if experiment.inpaint else None
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in [*self.decoder.modules(), self.head]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def branches(self, images: Tensor, mask: Tensor) -> tuple[Branch, Branch]:
        """Both halves of each image: the one that sees what `mask` [B, h, w] leaves visible, and the other one.

        Halves of equal size go through the networks as one batch of 2 B.
        """
        visible, hidden = split(mask)
        if visible.shape != hidden.shape:
            return Branch(self._decode(images, visible), hidden), Branch(self._decode(images, hidden), visible)
        both = self._decode(torch.cat([images, images]), torch.cat([visible, hidden]))
        first, second = both.chunk(2)
        return Branch(first, hidden), Branch(second, visible)

    def _decode(self, images: Tensor, seen: Tensor) -> Tensor:
        """Images, the numbers [B, n] of the patches to see -> tokens of all patches, [B, N, d]."""
        encoded = self.backbone.forward_features(images, keep=seen)
        positions = self.backbone.positions(*encoded.grid).flatten(2).mT.to(encoded.patches.dtype)
        blank = (self.mask_token.to(encoded.patches.dtype) + positions).expand(len(images), -1, -1)
        tokens = blank.scatter(1, seen[:, :, None].expand_as(encoded.patches), encoded.patches)
        for block in self.decoder:
            tokens = block(tokens, encoded.grid)
        return self.norm(tokens)

    def predict(self, images: Tensor, mask: Tensor) -> list[Prediction]:
        """The words that each half of the patches gives for the other.

        Raises:
            VitrailError: the network was trained to match alone.
        """
        if self.head is None:
            raise VitrailError("This SplitMask was trained without inpainting and predicts no words; take another run.")
        return [Prediction(branch.missing, self.head(of_patches(*branch))) for branch in self.branches(images, mask)]

    def forward(self, batch: Any, phase: str) -> dict[str, Any]:
        """The losses of a training batch, or what the metric takes of an evaluation batch."""
        branches = self.branches(batch.image, batch.mask)
        terms: dict[str, Tensor] = {}
        losses = []
        if self.head is not None:
            missing = torch.cat([branch.missing for branch in branches], dim=1)  # all patches, each once
            unseen = torch.cat([of_patches(*branch) for branch in branches], dim=1)
            costs, right = word_costs(self.head, unseen, self.tokenizer(batch.image, missing))
            losses.append(costs)
            terms |= {"inpainting_loss": costs, "right": right}
        if self.settings.match:
            means = [branch.tokens.mean(dim=1) for branch in branches]
            matching = info_nce(means[0], means[1], self.settings.temperature, gather=phase != "evaluate")
            losses.append(matching.expand(len(batch.image)))
            terms["matching_loss"] = losses[-1]
        terms["loss"] = torch.stack(losses).sum(dim=0)
        if phase == "evaluate":
            return {"terms": terms, "features": self.features(batch.image), "labels": batch.label}
        loss = terms.pop("loss").mean()
        return {"loss": loss} | {name: value.detach().mean() for name, value in terms.items()}
