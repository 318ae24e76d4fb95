"""ImageBind: one encoder a sense, one space for all (Section 6.3)."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.bind.modalities import MODALITIES
from vitrail.bind.modality import Modality
from vitrail.config import check_range
from vitrail.data.corrupt import TOO_LARGE, CorruptSample
from vitrail.errors import VitrailError
from vitrail.layers.low_rank import load_beneath

if TYPE_CHECKING:
    from vitrail.bind.checkpoints.compact import Weights

LARGEST_SCALE = 100.0
"""1 / tau is cut there, as in CLIP."""

SIX = ("image", "text", "audio", "depth", "thermal", "imu")
"""The senses of the published model."""


@dataclass(frozen=True)
class ImageBindConfig:
    """Which senses a model has, and the dimension of their common space.

    Raises:
        VitrailError: no senses, one under another's name, or a dimension below 1.
    """

    dimension: int
    """Of the embeddings."""
    modalities: dict[str, Modality]
    """By name."""

    def __post_init__(self) -> None:
        check_range(self, "dimension", least=1)
        if not self.modalities:
            raise VitrailError(f"A model needs at least one modality; choose among {', '.join(MODALITIES)}.")
        for name, modality in self.modalities.items():
            if not isinstance(modality, Modality) or modality.name != name:
                raise VitrailError(
                    f"{modality!r} stands in the model as {name!r}; name each modality as its class does."
                )

    def build(self) -> "ImageBind":
        """The model with fresh weights."""
        return ImageBind(self)


class LogitScale(nn.Module):
    """Vectors over the temperature of their sense: times 1 / tau, at most `LARGEST_SCALE`.

    Args:
        temperature: tau, at first.
        learned: whether log(1 / tau) is a parameter.
    """

    log_scale: Tensor

    def __init__(self, temperature: float, learned: bool) -> None:
        super().__init__()
        log_scale = torch.tensor(-math.log(temperature))
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return vectors * self.log_scale.exp().clamp(max=LARGEST_SCALE)


class ImageBind(nn.Module):
    """Embeds what its senses take in, all in one space: what belongs together is close together.

    Attributes:
        config: senses and dimension.
        encoders: name -> `Encoder`, or of images `BackboneEncoder`.
        scales: name -> `LogitScale`, of the senses that have a temperature.
    """

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        encoders: dict[str, nn.Module] = {}
        scales = {}
        for name, modality in config.modalities.items():
            encoders[name] = modality.build(config.dimension)
            if modality.temperature is not None:
                scales[name] = LogitScale(modality.temperature, modality.learned_temperature)
        self.encoders = nn.ModuleDict(encoders)
        self.scales = nn.ModuleDict(scales)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.parameters()).device

    def modality(self, name: str) -> Modality:
        """The configuration of a sense.

        Raises:
            VitrailError: this model does not have it.
        """
        if name not in self.config.modalities:
            raise VitrailError(
                f"The model has no modality {name!r} but {', '.join(self.config.modalities)}; choose among these."
            )
        return self.config.modalities[name]

    def encode(self, inputs: Mapping[str, Tensor], scaled: bool = False) -> dict[str, Tensor]:
        """Prepared inputs, on the model's device, to their embeddings; gradients flow.

        The vectors of the clips of one input are normalized, averaged, and normalized again.

        Args:
            inputs: name of the sense -> [B, ...], or [B, S, ...] for S clips or views of each input.
            scaled: give what the official code gives, for logits: each clip's unit vector over the temperature, and
                the clips' average as it is.

        Returns:
            name -> [B, dimension], unit vectors unless scaled.

        Raises:
            VitrailError: a sense that this model does not have, or inputs of another shape.
        """
        embeddings = {}
        for name, tensor in inputs.items():
            self.modality(name)
            encoder: Any = self.encoders[name]
            clips = None
            shape = tuple(tensor.shape)
            if not encoder.accepts(shape) and encoder.accepts(shape[1:]):
                clips, tensor = tensor.shape[:2], tensor.flatten(0, 1)
            vectors = F.normalize(encoder(tensor), dim=-1)
            if scaled and name in self.scales:
                vectors = self.scales[name](vectors)
            if clips is not None:
                vectors = vectors.unflatten(0, clips).mean(dim=1)
                vectors = vectors if scaled else F.normalize(vectors, dim=-1)
            embeddings[name] = vectors
        return embeddings

    @torch.inference_mode()
    def embed(self, sources: Mapping[str, Sequence[str | Path]], batch_size: int = 16) -> dict[str, Tensor]:
        """Files (of text: strings) to their embeddings; the model should be in evaluation mode.

        Args:
            sources: name of the sense -> n paths, or strings of text.
            batch_size: clips that are encoded at a time.

        Returns:
            name -> [n, dimension] unit vectors, float32, on the CPU.

        Raises:
            VitrailError: a sense that this model does not have.
            FileError, CorruptSample: a file that cannot be read, or whose numbers are too large for the encoder.
        """
        senses = {name: self.modality(name) for name in sources}

        def parts(name: str) -> Iterator[tuple[int, Tensor]]:
            for number, source in enumerate(sources[name]):
                for _, clips in senses[name].parts(source):
                    yield number, clips

        made = {name: self.embed_clips(name, parts(name), len(sources[name]), batch_size) for name in senses}
        for name, vectors in made.items():
            for source, finite in zip(sources[name], vectors.isfinite().all(dim=1).tolist(), strict=True):
                if not finite:
                    raise CorruptSample(source, TOO_LARGE)
        return made

    @torch.inference_mode()
    def embed_clips(
        self, name: str, inputs: Iterable[tuple[int, Tensor]], least: int = 0, batch_size: int = 16
    ) -> Tensor:
        """The embeddings of inputs of one sense, taken as they come, so that few are in memory at a time.

        Args:
            name: of the sense.
            inputs: numbers from 0, each with clips [S, ...] of the input that has the number; S may differ, and inputs
                may come in parts.
            least: n, at least.
            batch_size: clips that are encoded at a time.

        Returns:
            [n, dimension] unit vectors, float32, on the CPU, n one more than the greatest number; zeros where no input
            had the number.
        """
        sums: dict[int, Tensor] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}  # by shape: pictures and video may be mixed

        def finish(clips: list[tuple[int, Tensor]]) -> None:
            batch = torch.stack([clip for _, clip in clips]).to(self.device)
            vectors = self.encode({name: batch})[name].float().cpu()
            for (number, _), vector in zip(clips, vectors, strict=True):
                sums[number] = sums[number] + vector if number in sums else vector
            clips.clear()

        for number, input_clips in inputs:
            for clip in input_clips:
                clips = waiting.setdefault(tuple(clip.shape), [])
                clips.append((number, clip))
                if len(clips) == batch_size:
                    finish(clips)
        for clips in waiting.values():
            if clips:
                finish(clips)
        found = torch.zeros(max([least, *(number + 1 for number in sums)]), self.config.dimension)
        for number, total in sums.items():
            found[number] = total
        return F.normalize(found, dim=-1)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        modalities: Sequence[str] | None = None,
        weights: "Weights | None" = None,
        device: str | torch.device = "cpu",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "ImageBind":
        """A trained model in evaluation mode: see `vitrail.bind.checkpoints.storage.load_model`.

        Raises:
            VitrailError: there is no such model, or the file is none.
        """
        from vitrail.bind.checkpoints.storage import load_model

        return load_model(source, modalities, weights, settings).to(device)

    def initialize(
        self,
        source: str | Path,
        modalities: Sequence[str] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> tuple[str, ...]:
        """Takes over encoders (and temperatures) of a trained model, as of OpenCLIP's (Section 6.3.3).

        Args:
            source, settings: of the trained model, as for `load`.
            modalities: whose encoders to take over; they must be of the same sizes and kinds in both. None: of all
                senses that both have.

        Returns:
            The senses whose encoders were taken over.

        Raises:
            VitrailError: there is no such model, it has none of these senses, or its encoders are others than this
                model's.
        """
        trained = ImageBind.load(source, modalities=modalities, settings=settings)
        names = tuple(name for name in trained.config.modalities if modalities or name in self.config.modalities)
        if not names:
            raise VitrailError(
                f"{source} has {', '.join(trained.config.modalities)}, and this model "
                f"{', '.join(self.config.modalities)}: there is nothing to take over; give other weights."
            )
        for name in names:
            own, other = self.modality(name), trained.modality(name)
            for field in ("width", "depth", "heads", "norm_epsilon", "activation", "head_width"):
                if getattr(own, field) != getattr(other, field):
                    raise VitrailError(
                        f"The {name} encoder of {source} has {field} = {getattr(other, field)}, and that of this model "
                        f"{getattr(own, field)}; set it to the same."
                    )
            try:
                load_beneath(self.encoders[name], trained.encoders[name].state_dict())
            except RuntimeError:
                raise VitrailError(
                    f"The {name} encoder of {source} is for inputs or embeddings of another size than this model's; "
                    "give this model the same sizes."
                ) from None
            if name in self.scales and name in trained.scales:
                self.scales[name].load_state_dict(trained.scales[name].state_dict())
        return names

    def save(self, path: str | Path) -> None:
        """Writes the model to one file: see `vitrail.bind.checkpoints.storage.save_model`."""
        from vitrail.bind.checkpoints.storage import save_model

        save_model(self, path)


def imagebind_huge() -> ImageBindConfig:
    """The published model: 1201 million parameters, 1024 dimensions (Section 6.3.3)."""
    return ImageBindConfig(1024, {name: MODALITIES[name]() for name in SIX})


def imagebind_tiny() -> ImageBindConfig:
    """The same senses in four blocks of 128 channels each, which two cores train; 128 dimensions."""
    sizes: dict[str, Any] = {"width": 128, "depth": 4, "heads": 4}
    return ImageBindConfig(128, {name: dataclasses.replace(MODALITIES[name](), **sizes) for name in SIX})
