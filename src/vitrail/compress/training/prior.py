"""Training of the masked image model on a finished autoencoder (Section 5.3.3)."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor

from vitrail.compress.autoencoder import AutoencoderConfig
from vitrail.compress.prior import PriorConfig
from vitrail.compress.training.autoencoder import CodecTask, CodecTraining, read_autoencoder
from vitrail.data.samples import UnlabelledImage
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase


@dataclass(frozen=True, kw_only=True)
class PriorTraining(CodecTraining):
    """Training of the masked image model; `weights` name the autoencoder, which stays as it is."""

    autoencoder: AutoencoderConfig | None = None
    """Read from the weights."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """The masked image model."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of the masked image model."""

    def prepared(self) -> Self:
        """With the autoencoder's configuration read from the weights."""
        return replace(self, autoencoder=read_autoencoder(self.autoencoder, self.weights))

    def build_task(self) -> "PriorTask":
        """The networks with fresh weights."""
        return PriorTask(self)


class PriorTask(CodecTask):
    """Cross-entropy of hidden indices, which the frozen autoencoder makes of pictures on the fly."""

    def __init__(self, experiment: PriorTraining) -> None:
        super().__init__(experiment, read_autoencoder(experiment.autoencoder, experiment.weights), experiment.prior)
        self.experiment = experiment
        self.autoencoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """The autoencoder is always in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def phases(self) -> dict[str, Phase]:
        """One phase, `train`."""
        config = self.experiment.optimizer
        return {"train": Phase(build_optimizer(config, self), config)}

    def forward(self, batch: UnlabelledImage, phase: str) -> dict[str, Any]:
        """The loss of a training batch, or what the metric takes of an evaluation batch."""
        if phase == "evaluate":
            return self.evaluate(batch.image)
        indices: Tensor = self.autoencoder.encode(batch.image)
        assert self.prior is not None
        terms = self.prior_loss(self.prior, indices, self.draw_kept(len(indices), indices.device))
        return {"loss": terms["prior_loss"], "prior_bits": terms["prior_bits"]}
