"""BEiT: the encoder itself sees mask tokens, and predicts the words of the patches behind them (Bao et al., 2021)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.pretrain.masks import Masks, split
from vitrail.pretrain.pretraining import MaskedPretraining, MaskedTask, Prediction, of_patches, word_costs


@dataclass(frozen=True, kw_only=True)
class BEiT(MaskedPretraining):
    """Pre-training by BEiT: blocks that hide 40 % of the patches."""

    masks: Masks = field(default_factory=lambda: Masks(ratio=0.4))
    """Which patches are hidden."""

    def build_task(self) -> "BEiTTask":
        """The networks with fresh weights."""
        return BEiTTask(self)


class BEiTTask(MaskedTask):
    """Cross-entropy of the words of hidden patches."""

    def __init__(self, experiment: BEiT) -> None:
        super().__init__(experiment)
        width = experiment.backbone.width
        self.mask_token = nn.Parameter(torch.empty(width))
        self.head = nn.Linear(width, experiment.tokenizer.words)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def predict(self, images: Tensor, mask: Tensor) -> list[Prediction]:
        """The words of the hidden patches, from the visible ones."""
        hidden, tokens = self._hidden(images, mask)
        return [Prediction(hidden, self.head(tokens))]

    def _hidden(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of the hidden patches, [B, n], and their tokens, [B, n, d]."""
        _, hidden = split(mask)
        tokens = self.backbone.forward_features(images, masked=(mask, self.mask_token)).patches
        return hidden, of_patches(tokens, hidden)

    def forward(self, batch: Any, phase: str) -> dict[str, Any]:
        """The losses of a training batch, or what the metric takes of an evaluation batch."""
        hidden, tokens = self._hidden(batch.image, batch.mask)
        costs, right = word_costs(self.head, tokens, self.tokenizer(batch.image, hidden))
        if phase == "evaluate":
            terms = {"loss": costs, "right": right}
            return {"terms": terms, "features": self.features(batch.image), "labels": batch.label}
        return {"loss": costs.mean(), "right": right.mean()}
