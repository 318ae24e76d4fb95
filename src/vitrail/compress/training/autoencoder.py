"""Training of the autoencoder by MSE or MS-SSIM, alone or with the masked image model beside it (Section 5.3.3)."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.compress.autoencoder import Autoencoder, AutoencoderConfig
from vitrail.compress.prior import Prior, PriorConfig, draw_stage, draw_uniform, masked_cross_entropy
from vitrail.compress.stages import MAX_STAGES, quincunx
from vitrail.compress.training.crops import Crops
from vitrail.compress.training.losses import Distortion, distortion
from vitrail.config import check_choices, check_range
from vitrail.data.datasets import ImageData
from vitrail.data.loader import Dataset
from vitrail.data.samples import UnlabelledImage
from vitrail.engine.checkpoint import open_task
from vitrail.engine.experiment import Experiment
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase, Task
from vitrail.errors import VitrailError
from vitrail.layers.product_quantizer import centroid_shares, draw_kept, perplexity
from vitrail.metrics.reconstruction import ReconstructionMetric


@dataclass(frozen=True)
class Masking:
    """Which tokens the masked image model sees in training."""

    policy: Literal["uniform", "quincunx"] = "uniform"
    """Hide a share of the tokens drawn from U(0, 1), or all from a stage of the quincunx partition on."""
    stages: int = 5
    """Of the quincunx partition, in training and for the rates that an evaluation estimates."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "stages", least=2, most=MAX_STAGES)  # one alone leaves nothing to predict

    def draw(self, samples: int, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Which tokens are known, [samples, h, w] bool."""
        if self.policy == "uniform":
            return draw_uniform(samples, grid, device)
        return draw_stage(samples, quincunx(*grid, self.stages), device)


@dataclass(frozen=True, kw_only=True)
class CodecTraining(Experiment):
    """What the codec's trainings have in common."""

    data: ImageData
    """Training images; labels are left aside."""
    validation: Path | None = None
    """Images to evaluate on while training, their centres: a folder, a list or tars."""
    crops: Crops = field(default_factory=Crops)
    """What is cut out of a picture."""
    masking: Masking = field(default_factory=Masking)
    """What the masked image model sees."""

    def train_dataset(self) -> Dataset:
        """Random crops of the training images."""
        return replace(self.data, labelled=False).open(self.crops.build())

    def validation_dataset(self) -> Dataset | None:
        """The centres of the validation images."""
        if self.validation is None:
            return None
        return replace(self.data, root=self.validation, list=None, labelled=False).open(self.crops.centre())


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(CodecTraining):
    """Training of encoder, quantizer and decoder by Equation 5.4, from scratch."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Encoder, quantizer, decoder."""
    prior: PriorConfig | None = None
    """The masked image model to train beside them, without gradient into them; none: later, on the finished ones."""
    objective: Distortion = "mse"
    """The distortion to minimise."""
    quantizer_weight: float = 0.5
    """Of the quantizer's loss, eta: 0.5 with MSE, 10 with MS-SSIM (Section 5.4.1)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of all networks."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "quantizer_weight", least=0)

    def build_task(self) -> "AutoencoderTask":
        """The networks with fresh weights."""
        return AutoencoderTask(self)


class CodecTask(Task):
    """An autoencoder, perhaps with a masked image model: their evaluation, and how to start from another's weights."""

    def __init__(self, experiment: CodecTraining, autoencoder: AutoencoderConfig, prior: PriorConfig | None) -> None:
        super().__init__()
        self.masking = experiment.masking
        self.autoencoder: Autoencoder = autoencoder.build()
        self.prior: Prior | None = None if prior is None else prior.build(autoencoder.parts, autoencoder.centroids)

    @property
    def qualities(self) -> tuple[int, ...]:
        """How many sub-vectors pictures can be made of."""
        parts = self.autoencoder.parts
        return tuple(range(1, parts + 1)) if self.autoencoder.config.nested else (parts,)

    def draw_kept(self, samples: int, device: torch.device) -> Tensor | None:
        """How many sub-vectors each sample keeps, [samples]; None where all always do."""
        return draw_kept(samples, self.autoencoder.parts, device) if self.autoencoder.config.nested else None

    def prior_loss(self, prior: Prior, indices: Tensor, kept: Tensor | None) -> dict[str, Tensor]:
        """The masked image model's loss on a training batch, `prior_loss` in nats and, detached, `prior_bits`."""
        prior.observe(indices)
        known = self.masking.draw(len(indices), (indices.shape[1], indices.shape[2]), indices.device)
        loss = masked_cross_entropy(prior(indices, known, kept), indices, known, kept)
        return {"prior_loss": loss.loss, "prior_bits": loss.bits}

    def evaluate(self, images: Tensor) -> dict[str, Any]:
        """What `ReconstructionMetric.update` takes: each quality's pictures and what they cost by each policy."""
        indices = self.autoencoder.encode(images)
        given = [indices[..., :quality] for quality in self.qualities]
        outputs: dict[str, Any] = {
            "images": images,
            "reconstructions": torch.stack([self.autoencoder.decode(part) for part in given], dim=1),
            "indices": indices,
        }
        if self.prior is not None:
            stages = quincunx(indices.shape[1], indices.shape[2], self.masking.stages).to(indices.device)
            marginal = [self.prior.marginal_bits(part).flatten(1).sum(dim=1) for part in given]
            staged = [self.prior.stage_bits(part, stages).sum(dim=1) for part in given]
            outputs["bits"] = {"marginal": torch.stack(marginal, dim=1), "quincunx": torch.stack(staged, dim=1)}
        return outputs

    def metric(self) -> ReconstructionMetric:
        """PSNR, MS-SSIM, estimated rates, use of the codebook."""
        return ReconstructionMetric(self.autoencoder.parts, self.autoencoder.centroids, self.qualities)

    def start_from(self, weights: str) -> None:
        """Takes over the autoencoder of a checkpoint, and its masked image model if both have the same.

        Raises:
            VitrailError: it is no checkpoint of a codec, or of another autoencoder.
        """
        source = open_codec_task(weights)
        if not _same_network(self.autoencoder.config, source.autoencoder.config):
            raise VitrailError(
                f"{weights} has another autoencoder than this training; set its fields as they were there."
            )
        self.autoencoder.load_state_dict(source.autoencoder.state_dict())
        if self.prior is not None and source.prior is not None and self.prior.config == source.prior.config:
            self.prior.load_state_dict(source.prior.state_dict())


class AutoencoderTask(CodecTask):
    """L = distortion + eta L_PQ (Equation 5.4), and the masked image model's cross-entropy where there is one."""

    def __init__(self, experiment: AutoencoderTraining) -> None:
        super().__init__(experiment, experiment.autoencoder, experiment.prior)
        self.experiment = experiment

    def phases(self) -> dict[str, Phase]:
        """One phase, `train`."""
        config = self.experiment.optimizer
        return {"train": Phase(build_optimizer(config, self), config)}

    def forward(self, batch: UnlabelledImage, phase: str) -> dict[str, Any]:
        """The loss of a training batch, or what the metric takes of an evaluation batch."""
        images = batch.image
        if phase == "evaluate":
            return self.evaluate(images)
        kept = self.draw_kept(len(images), images.device)
        made = self.autoencoder(images, kept)
        difference = distortion(self.experiment.objective, images, made.images)
        terms = {
            "loss": difference + self.experiment.quantizer_weight * made.quantizer_loss,
            "distortion": difference.detach(),
            "quantizer_loss": made.quantizer_loss.detach(),
            "perplexity": perplexity(centroid_shares(made.indices, self.autoencoder.centroids)).mean(),
        }
        if self.prior is not None:
            beside = self.prior_loss(self.prior, made.indices, kept)
            terms["loss"] = terms["loss"] + beside["prior_loss"]
            terms["prior_bits"] = beside["prior_bits"]
        return terms

    def after_step(self, step: int, steps: int) -> None:
        """Revives dead centroids."""
        self.autoencoder.quantizer.revive(step)


def open_codec_task(weights: str | Path) -> CodecTask:
    """The task of a checkpoint, or of the folder of a run, in evaluation mode.

    Raises:
        VitrailError: there is none, or it is no checkpoint of a codec.
    """
    _, task = open_task(weights)
    if not isinstance(task, CodecTask):
        raise VitrailError(f"{weights} is no codec but a {type(task).__name__}; take a checkpoint of a codec.")
    return task


def read_autoencoder(given: AutoencoderConfig | None, weights: str | None) -> AutoencoderConfig:
    """The autoencoder's configuration: as given, or as in the checkpoint to start from.

    Raises:
        VitrailError: neither is there.
    """
    if given is not None:
        return given
    if weights is None:
        raise VitrailError("This training needs a finished autoencoder; name its checkpoint or run with --weights.")
    return open_codec_task(weights).autoencoder.config


def _same_network(config: AutoencoderConfig, other: AutoencoderConfig) -> bool:
    """Whether weights fit and mean the same: how the codebook was trained does not matter."""
    training = ("commitment", "usage_decay", "dead_below")
    return replace(config, **{name: getattr(other, name) for name in training}) == other
