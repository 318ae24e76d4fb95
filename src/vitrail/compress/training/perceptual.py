"""Training of the decoder for the eye: MSE, LPIPS and an adversary, the encoder frozen (Equation 5.6)."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.compress.autoencoder import AutoencoderConfig
from vitrail.compress.perceptual import (
    FeatureExtractor,
    FeaturesConfig,
    Maps,
    load_features,
    load_linear,
    perceptual_distance,
)
from vitrail.compress.training.autoencoder import CodecTask, CodecTraining, read_autoencoder
from vitrail.compress.training.discriminators import DiscriminatorName, build_discriminator
from vitrail.compress.training.losses import discriminator_loss, distortion, generator_loss
from vitrail.config import check_choices, check_range
from vitrail.data.samples import UnlabelledImage
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase

# Section 5.4.1, Main experimental setup of the perceptual stage.
_OPTIMIZER = OptimizerConfig(
    lr=1e-4, lr_batch_size=256, weight_decay=5e-5, betas=(0.9, 0.95), warmup_epochs=0, min_lr=1e-5, clip=4.0
)


@dataclass(frozen=True, kw_only=True)
class PerceptualTraining(CodecTraining):
    """Training of the decoder alone, from the autoencoder that `weights` name: files stay what they were."""

    autoencoder: AutoencoderConfig | None = None
    """Read from the weights."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """Deep features of LPIPS and of the projected discriminator."""
    perceptual_weight: float = 1.0
    """Of LPIPS, alpha; 0: without."""
    adversarial_weight: float = 0.1
    """Of the adversarial loss, gamma."""
    discriminator: DiscriminatorName = "projected"
    """The adversary (Table 5.1); none: MSE and LPIPS alone."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layers."""
    optimizer: OptimizerConfig = _OPTIMIZER
    """Of the decoder."""
    discriminator_optimizer: OptimizerConfig = _OPTIMIZER
    """Of the discriminator."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "perceptual_weight", "adversarial_weight", least=0)
        check_range(self, "discriminator_width", least=1)

    @property
    def uses_features(self) -> bool:
        """Whether the deep features are needed."""
        return self.perceptual_weight > 0 or self.discriminator == "projected"

    def prepared(self) -> Self:
        """With the autoencoder's configuration read from the weights, and the features' channels from the network."""
        features = self.features.prepared() if self.uses_features else self.features
        return replace(self, autoencoder=read_autoencoder(self.autoencoder, self.weights), features=features)

    def build_task(self) -> "PerceptualTask":
        """The networks with fresh weights."""
        return PerceptualTask(self)


class PerceptualTask(CodecTask):
    """Equation 5.6, in two phases: `generator`, the decoder, and `discriminator`, where there is one."""

    def __init__(self, experiment: PerceptualTraining) -> None:
        super().__init__(experiment, read_autoencoder(experiment.autoencoder, experiment.weights), None)
        self.experiment = experiment
        self.autoencoder.requires_grad_(False)
        self.autoencoder.decoder.requires_grad_(True)
        self.discriminator = build_discriminator(
            experiment.discriminator, experiment.features.channels, experiment.discriminator_width
        )
        # In a tuple, for they belong neither into checkpoints nor among the parameters.
        self._features: tuple[FeatureExtractor, ...] = ()
        self._linear: list[Tensor] | None = None
        self.train()

    def train(self, mode: bool = True) -> Self:
        """All of the autoencoder but the decoder is always in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        self.autoencoder.decoder.train(mode)
        return self

    def phases(self) -> dict[str, Phase]:
        """`generator`, then `discriminator`."""
        experiment = self.experiment
        if experiment.uses_features:
            device = next(self.parameters()).device
            self._features = (load_features(experiment.features.network).to(device),)
            if experiment.features.linear is not None:
                weights = load_linear(experiment.features.linear, experiment.features.channels)
                self._linear = [weight.to(device) for weight in weights]
        generator = build_optimizer(experiment.optimizer, self.autoencoder.decoder)
        phases = {"generator": Phase(generator, experiment.optimizer)}
        if self.discriminator is not None:
            config = experiment.discriminator_optimizer
            phases["discriminator"] = Phase(build_optimizer(config, self.discriminator), config)
        return phases

    def _maps(self, images: Tensor) -> Maps:
        return self._features[0](images) if self._features else ()

    def forward(self, batch: UnlabelledImage, phase: str) -> dict[str, Any]:
        """The loss of a phase on a training batch, or what the metric takes of an evaluation batch."""
        images = batch.image
        if phase == "evaluate":
            return self.evaluate(images)
        indices = self.autoencoder.encode(images)
        kept = self.draw_kept(len(images), images.device)
        if phase == "discriminator":
            assert self.discriminator is not None
            with torch.no_grad():
                made = self.autoencoder.reconstruct(indices, kept)
                originals, reconstructions = self._maps(images), self._maps(made)
            real, fake = self.discriminator(images, originals), self.discriminator(made, reconstructions)
            return {
                "loss": discriminator_loss(real, fake),
                "real": _mean_probability(real),
                "fake": _mean_probability(fake),
            }
        made = self.autoencoder.reconstruct(indices, kept)
        return self._generator_terms(images, made)

    def _generator_terms(self, images: Tensor, made: Tensor) -> dict[str, Tensor]:
        difference = distortion("mse", images, made)
        loss, terms = difference, {"mse": difference.detach()}
        maps = self._maps(made)
        if self.experiment.perceptual_weight > 0:
            with torch.no_grad():
                originals = self._maps(images)
            distance = perceptual_distance(originals, maps, self._linear).mean()
            loss, terms["lpips"] = loss + self.experiment.perceptual_weight * distance, distance.detach()
        if self.discriminator is not None:
            adversarial = generator_loss(self.discriminator(made, maps))
            loss, terms["adversarial"] = (
                loss + self.experiment.adversarial_weight * adversarial,
                adversarial.detach(),
            )
        return {"loss": loss, **terms}


def _mean_probability(logits: tuple[Tensor, ...]) -> Tensor:
    """How likely the discriminator finds it that pictures are originals, mean over its maps."""
    return torch.stack([F.sigmoid(part.detach().float()).mean() for part in logits]).mean()
