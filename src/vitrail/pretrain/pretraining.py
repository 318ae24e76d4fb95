"""What the methods have in common: images without labels, their validation, features for neighbours and probes."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.backbones.vit import ViT, ViTConfig
from vitrail.data.augmentation import EvalTransform, Transform
from vitrail.data.datasets import ImageData
from vitrail.data.loader import Dataset
from vitrail.data.samples import LabelledImage, UnlabelledImage
from vitrail.engine.experiment import Experiment
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase, Task
from vitrail.metrics.pretext import PretextMetric
from vitrail.pretrain.masks import MaskedImages, Masks, grid_of
from vitrail.pretrain.tokenizers import TokenizerConfig
from vitrail.pretrain.views import View

ROWS = 256
"""Hidden patches whose logits are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class Pretraining(Experiment):
    """Training on images without labels."""

    data: ImageData
    """Training images; labels are left aside."""
    validation: Path | None = None
    """Images that are held out, for the loss; with class folders or labels, for nearest neighbours too."""
    eval_transform: EvalTransform = field(default_factory=EvalTransform)
    """Preparation of a held-out image."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW, its schedule, clipping."""

    def _held_out(self, transform: Transform) -> Dataset | None:
        if self.validation is None:
            return None
        return self.data.at(self.validation).open(transform)


@dataclass(frozen=True, kw_only=True)
class MaskedPretraining(Pretraining):
    """Prediction of the visual words of patches that are not seen."""

    backbone: ViTConfig = field(default_factory=lambda: ViTConfig(class_token=False, pooling="mean"))
    """The network to pre-train."""
    view: View = field(default_factory=View)
    """Augmentation of a training image."""
    masks: Masks = field(default_factory=Masks)
    """Which patches are hidden."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """What the visual words are."""

    def train_dataset(self) -> Dataset:
        """The training images, augmented and masked."""
        images = replace(self.data, labelled=False).open(self.view.build())
        return MaskedImages(images, self.masks, self.backbone.patch_size)

    def validation_dataset(self) -> Dataset | None:
        """The held-out images, masked, with labels where there are some."""
        images = self._held_out(self.eval_transform.build())
        return images and HeldOutImages(images, self.masks, self.backbone.patch_size)

    def plain_dataset(self) -> Dataset:
        """The training images as a held-out image is prepared: where the tokenizer finds its words."""
        return replace(self.data, labelled=False).open(self.eval_transform.build())


def label_of(sample: LabelledImage | UnlabelledImage) -> int:
    """The number of a sample's class, -1 where it is not known."""
    return sample.label if isinstance(sample, LabelledImage) else -1


class HeldOutImage(NamedTuple):
    """A sample, or a batch of them.

    Attributes:
        image: [3, H, W], or [B, 3, H, W].
        mask: [h, w] bool, or [B, h, w].
        label: the number of the class, or [B]; -1 where it is not known.
    """

    image: Tensor
    mask: Tensor
    label: int | Tensor


class HeldOutImages(MaskedImages):
    """Held-out images with masks, and labels where they have some."""

    def __getitem__(self, index: int) -> HeldOutImage:  # type: ignore[override]
        sample = self.images[index]
        return HeldOutImage(sample.image, self.masks.draw(grid_of(sample.image, self.patch_size)), label_of(sample))


class Prediction(NamedTuple):
    """What a network takes hidden patches for.

    Attributes:
        missing: [B, n] int64, the numbers of the patches that it did not see, row by row from 0.
        logits: [B, n, V], of their words.
    """

    missing: Tensor
    logits: Tensor


class MaskedTask(Task):
    """A ViT, a tokenizer, and what the words of hidden patches are predicted with.

    Attributes:
        backbone: what is kept after pre-training.
        tokenizer: fit to the training images before the first step.
    """

    backbone: ViT

    def __init__(self, experiment: MaskedPretraining) -> None:
        super().__init__()
        self.experiment = experiment
        self.backbone = experiment.backbone.build()
        self.tokenizer = experiment.tokenizer.build(experiment.backbone.patch_size)
        for name, layer in self.backbone.blocks.named_modules():  # as BEiT: deep networks start gently
            if isinstance(layer, nn.Linear) and name.endswith((".attention.projection", ".feed_forward.contract")):
                number = 1 + int(name.partition(".")[0])
                nn.init.trunc_normal_(layer.weight, std=0.02 / math.sqrt(2 * number))

    def initialize(self) -> None:
        """Finds the tokenizer's words in the training images."""
        self.tokenizer.fit(self.experiment.plain_dataset(), self.experiment.loader)

    def phases(self) -> dict[str, Phase]:
        """One phase, `train`."""
        config = self.experiment.optimizer
        return {"train": Phase(build_optimizer(config, self), config)}

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> what the backbone says of whole images, [B, d] float32, without gradient."""
        with torch.no_grad():
            return self.backbone.forward_features(images).class_token.float()

    def predict(self, images: Tensor, mask: Tensor) -> list["Prediction"]:
        """What the network takes hidden patches for; one prediction for each set of patches that it is shown.

        Args:
            images: [B, 3, H, W].
            mask: [B, h, w] bool, equally many hidden in each.
        """
        raise NotImplementedError

    def metric(self) -> PretextMetric:
        """Loss and accuracy of the prediction, nearest neighbours."""
        return PretextMetric()


def word_costs(head: nn.Module, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """What the words of hidden patches cost, and how often the best guess is right.

    Args:
        head: [..., d] to the logits of all words, [..., V].
        tokens: [B, n, d], of the hidden patches.
        words: [B, n] int64, the true ones.

    Returns:
        The mean cross-entropy of each image in nats, and the share of its words that are guessed, both [B] float32.
    """
    # Logits are the largest tensor of a step by far. A few rows at a time stay in the cache, twice as fast on a CPU.
    costs, right = [], []
    for some, truth in zip(tokens.flatten(0, 1).split(ROWS), words.flatten().split(ROWS), strict=True):
        logits = head(some).float()
        costs.append(nn.functional.cross_entropy(logits, truth, reduction="none"))
        right.append(logits.detach().argmax(dim=1) == truth)
    return torch.cat(costs).view_as(words).mean(dim=1), torch.cat(right).view_as(words).float().mean(dim=1)


def of_patches(tokens: Tensor, patches: Tensor) -> Tensor:
    """Tokens [B, N, d] of all patches, the numbers of some [B, n] -> their tokens [B, n, d]."""
    return tokens.gather(1, patches[:, :, None].expand(-1, -1, tokens.shape[2]))
