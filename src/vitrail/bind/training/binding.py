"""Training: senses are bound in pairs, by InfoNCE (Sections 6.3.2 and 6.4.5)."""

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.bind.modalities.image import Image
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBindConfig
from vitrail.bind.tower import BackboneEncoder
from vitrail.bind.training.contrastive import pair_loss, temperature_of
from vitrail.bind.training.pairs import Pair, PairTable
from vitrail.config import check_range
from vitrail.data.loader import Dataset
from vitrail.engine.experiment import Experiment
from vitrail.engine.optim import OptimizerConfig, build_optimizer
from vitrail.engine.task import Phase, Task
from vitrail.errors import VitrailError
from vitrail.layers.low_rank import add_low_rank
from vitrail.metrics.retrieval import retrieval


@dataclass(frozen=True)
class Pairs:
    """Pairs of two senses, and how the model learns from them."""

    table: Path
    """CSV or Parquet: a column of files (of texts: the texts themselves) for each of both senses. Or tars with a file
    for each, a pattern such as pairs-{000..127}.tar."""
    first: str = "image"
    """The sense that others are bound to."""
    second: str = "audio"
    """The one that is bound to it; its temperature counts."""
    columns: tuple[str, str] | None = None
    """Of the table, None: the senses' names; or suffixes of files in tars, None: those that the senses know."""
    aligned: bool = True
    """Both see the same crop, or the same time (Table 6.6f and h)."""
    replication: float = 1.0
    """How often each pair comes in an epoch (Table 6.5)."""
    share: int = 1
    """Pairs of this table for each sample of the batch: with a batch of 64 and a share of 2, 128 in each step."""
    update_first: bool = True
    """Whether these pairs change the encoder of the first sense, unless it is frozen; False: others do, as images that
    learn from text alone (Table 6.8)."""
    optimizer: OptimizerConfig | None = None
    """For these pairs; None: the experiment's."""

    def __post_init__(self) -> None:
        check_range(self, "share", least=1)
        check_range(self, "replication", above=0)
        if self.first == self.second:
            raise VitrailError(f"Pairs of {self.first} and {self.first} bind nothing; name two senses.")

    def open(self, model: ImageBindConfig) -> PairTable:
        """The data set."""
        first, second = (_modality(model, name) for name in (self.first, self.second))
        return PairTable(
            self.table, first, second, columns=self.columns, aligned=self.aligned, replication=self.replication
        )


def _modality(model: ImageBindConfig, name: str) -> Modality:
    if name not in model.modalities:
        raise VitrailError(f"There are pairs of {name}, which is none of the model's {', '.join(model.modalities)}.")
    return model.modalities[name]


@dataclass(frozen=True, kw_only=True)
class BindTraining(Experiment):
    """Training of the encoders of some senses on pairs with others.

    One optimizer for each kind of pairs takes a step in turn; a sense that learns from several has a share in several.
    """

    model: ImageBindConfig
    """The senses and the dimension of their space."""
    pairs: tuple[Pairs, ...]
    """What is bound, each kind from one table."""
    validation: Pairs | None = None
    """Pairs to retrieve from each other at each evaluation; of two senses that never meet in training, it shows what
    emerges."""
    frozen: tuple[str, ...] = ("image", "text")
    """Senses whose encoders stay as they are; `image.backbone`: the backbone alone, while its head learns."""
    initialized: tuple[str, ...] | None = None
    """Senses whose encoders start from `weights`; None: all that both models have. Weights of a backbone are for the
    tower of images alone."""
    low_rank: int | None = None
    """Train low-rank changes of this rank (LoRA) instead of whole matrices; None: whole matrices."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=1.6e-3, lr_batch_size=None, weight_decay=0.2, betas=(0.9, 0.95), warmup_epochs=2, min_lr=0.0, clip=1.0
        )
    )
    """AdamW as for AudioSet (Table 6.5)."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise VitrailError("Training needs pairs; give at least one table.")
        check_range(self, "low_rank", least=1)
        for pairs in (*self.pairs, *([self.validation] if self.validation else [])):
            for sense in (pairs.first, pairs.second):
                _modality(self.model, sense)
        known = {*self.model.modalities, "image", "text"}  # the default names both, of models without them too
        for path in (*self.frozen, *(self.initialized or ())):
            if path.partition(".")[0] not in known:
                raise VitrailError(
                    f"There is no sense {path} to freeze or to initialize; the model has "
                    f"{', '.join(self.model.modalities)}."
                )
        self._check_start()

    def _check_start(self) -> None:
        """What is frozen must have learned before."""
        begun = self.model.modalities if self.initialized is None else self.initialized
        for pairs in self.pairs:
            for sense in {pairs.first, pairs.second}.intersection(self.frozen):
                if not self.weights or self.starts_tower or sense not in begun:
                    raise VitrailError(
                        f"{sense} is frozen and would start from nothing; give weights that it starts from, or leave "
                        "it out of frozen."
                    )

    @property
    def starts_tower(self) -> bool:
        """Whether `weights` are those of a backbone, for the tower of images alone."""
        image = self.model.modalities.get("image")
        return isinstance(image, Image) and image.backbone is not None and "image" not in self.frozen

    @property
    def kinds(self) -> dict[str, Pairs]:
        """The pairs by the names of the phases that learn from them, in curves: `image_audio`; of further tables of the
        same two senses `image_audio_2` and so on."""
        kinds: dict[str, Pairs] = {}
        for pairs in self.pairs:
            name = f"{pairs.first}_{pairs.second}"
            count = 1 + sum((one.first, one.second) == (pairs.first, pairs.second) for one in kinds.values())
            kinds[name if count == 1 else f"{name}_{count}"] = pairs
        return kinds

    def build_task(self) -> "BindTask":
        """The model with its losses."""
        return BindTask(self)

    def train_dataset(self) -> Dataset:
        """Pairs of all kinds at once.

        Raises:
            VitrailError: a table cannot be read, or a step of one has no negatives.
        """
        micro = self.loop.batch_size // self.loop.accumulate  # over all processes, which share their negatives
        for name, pairs in self.kinds.items():
            if micro * pairs.share < 2:
                raise VitrailError(
                    f"One of the pairs {name} at a time has no others to be told apart from; make loop.batch_size at "
                    f"least {2 * self.loop.accumulate}, or the share of these pairs 2."
                )
        return Handfuls({name: (pairs.open(self.model), pairs.share) for name, pairs in self.kinds.items()})

    def validation_dataset(self) -> Dataset | None:
        """The held-out pairs as in an evaluation."""
        if self.validation is None:
            return None
        return HeldOutPairs(self.validation.open(self.model))


class Handfuls:
    """A data set whose samples are dicts: some pairs of each of several tables, [share, ...] each.

    An epoch is the longest table's; shorter ones begin again.

    Args:
        tables: name -> data set of pairs, and how many of them are in a sample.
    """

    def __init__(self, tables: dict[str, tuple[Dataset, int]]) -> None:
        self.tables = tables
        self._length = max(-(-len(table) // share) for table, share in tables.values())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Pair]:
        sample = {}
        for name, (table, share) in self.tables.items():
            some = [table[(number + place * self._length) % len(table)] for place in range(share)]
            sample[name] = Pair(torch.stack([pair.first for pair in some]), torch.stack([pair.second for pair in some]))
        return sample


class HeldOutPair(NamedTuple):
    """A sample of `HeldOutPairs`, or a batch of them.

    Attributes:
        first: [...] or [B, ...].
        second: the same of the other sense.
        same: [2] or [B, 2] int64, of each side; what is the same in several pairs has the same number.
    """

    first: Tensor
    second: Tensor
    same: Tensor


class HeldOutPairs:
    """A data set of pairs as in an evaluation: nothing is random, and of several clips the middle one counts."""

    def __init__(self, table: PairTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> HeldOutPair:
        first, second = (clips[len(clips) // 2] for clips in self.table.read(number))
        return HeldOutPair(first, second, torch.tensor([_digest(first), _digest(second)]))


def _digest(inputs: Tensor) -> int:
    """A number of 64 bits for what is in a tensor."""
    return int.from_bytes(blake2b(inputs.numpy().tobytes(), digest_size=8).digest(), "big", signed=True)


class BindTask(Task):
    """An ImageBind that learns from pairs.

    Attributes:
        model: what is kept after training.
    """

    def __init__(self, experiment: BindTraining) -> None:
        super().__init__()
        self.experiment = experiment
        self.model = experiment.model.build()
        self.kinds = experiment.kinds
        self.fixed = [
            _part(self.model.encoders, path)
            for path in experiment.frozen
            if path.partition(".")[0] in self.model.encoders
        ]
        for part in self.fixed:
            part.requires_grad_(False)
        if experiment.low_rank is not None:
            for encoder in self.model.encoders.values():
                if all(parameter.requires_grad for parameter in encoder.parameters()):
                    add_low_rank(encoder, experiment.low_rank)
        self.train()

    @property
    def tower(self) -> nn.Module | None:
        """The backbone of images that starts from weights of its own; None: there is none, or not of its own."""
        encoder = dict(self.model.encoders.items()).get("image")
        return encoder.backbone if isinstance(encoder, BackboneEncoder) and self.experiment.starts_tower else None

    def start_from(self, source: str) -> None:
        """Takes over encoders from a trained model, such as OpenCLIP's: see `BindTraining.initialized`.

        Raises:
            VitrailError: there is no such model, its encoders are others than this model's, or it lacks one that is
                frozen or initialized.
        """
        taken = self.model.initialize(source, self.experiment.initialized)
        for sense in self.experiment.frozen:
            if sense in self.model.encoders and sense not in taken:
                raise VitrailError(f"{sense} is frozen, and {source} has none that it could start from.")

    def train(self, mode: bool = True) -> "BindTask":
        """What is frozen stays as in evaluation."""
        super().train(mode)
        for part in self.fixed:
            part.eval()
        return self

    def phases(self) -> dict[str, Phase]:
        """One phase for each kind of pairs, by their name."""
        phases = {}
        for name, pairs in self.kinds.items():
            learning = [pairs.second, *([pairs.first] if pairs.update_first else [])]
            parts = nn.ModuleDict({sense: self.model.encoders[sense] for sense in learning})
            for sense in learning:
                if sense in self.model.scales and sense not in self.experiment.frozen:
                    parts[f"{sense}_scale"] = self.model.scales[sense]
            config = pairs.optimizer or self.experiment.optimizer
            phases[name] = Phase(build_optimizer(config, parts), config)
        return phases

    def forward(self, batch: Any, phase: str) -> dict[str, Tensor]:
        """A batch of `Handfuls` and the name of a kind of pairs -> `loss`, `temperature` and `accuracy`.

        The latter is the share of the second sense's inputs that find their first among those of the batch. In the
        phase "evaluate", a batch of `HeldOutPairs` -> unit vectors `first` and `second`, [B, d], and `same` of it.
        """
        if phase == "evaluate":
            return self._evaluate(batch)
        pairs = self.kinds[phase]
        vectors = {}
        for sense, tensor in zip((pairs.first, pairs.second), batch[phase], strict=True):
            fixed = sense == pairs.first and not pairs.update_first  # what is frozen takes no gradients anyway
            with torch.set_grad_enabled(torch.is_grad_enabled() and not fixed):
                vectors[sense] = self.model.encode({sense: tensor.flatten(0, 1)})[sense]
        loss = pair_loss(self.model, vectors, pairs.first, pairs.second)
        with torch.no_grad():
            found = (vectors[pairs.second] @ vectors[pairs.first].mT).argmax(dim=1)
            accuracy = (found == torch.arange(len(found), device=found.device)).float().mean()
            temperature = temperature_of(self.model, pairs.first, pairs.second)
        return {"loss": loss, "accuracy": accuracy, "temperature": temperature.detach()}

    def _evaluate(self, batch: HeldOutPair) -> dict[str, Tensor]:
        pairs = self.experiment.validation
        assert pairs is not None
        vectors = self.model.encode({pairs.first: batch.first, pairs.second: batch.second})
        return {"first": vectors[pairs.first].float(), "second": vectors[pairs.second].float(), "same": batch.same}

    def metric(self) -> "RetrievalMetric":
        """Retrieval among the held-out pairs, in both directions."""
        pairs = self.experiment.validation
        assert pairs is not None
        return RetrievalMetric((pairs.first, pairs.second))


def _part(encoders: nn.ModuleDict, path: str) -> nn.Module:
    try:
        return encoders.get_submodule(path)
    except AttributeError:
        sense = path.partition(".")[0]
        parts = ", ".join(name for name, _ in encoders[sense].named_children())
        raise VitrailError(f"There is no {path} to freeze; freeze {sense}, or of its parts {parts}.") from None


class RetrievalMetric:
    """Unit vectors of pairs, gathered, and how well each finds its other among all; what stands in several pairs, as a
    caption of many files, is one and belongs to all of its others, as in `vitrail evaluate`."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []
        self.same: list[Tensor] = []

    def update(self, first: Tensor, second: Tensor, same: Tensor) -> None:
        """Adds the vectors [B, d] of a batch of pairs, and which are the same: see `HeldOutPair`."""
        self.first.append(F.normalize(first, dim=1))
        self.second.append(F.normalize(second, dim=1))
        self.same.append(same)

    def merge(self, other: "RetrievalMetric") -> None:
        """Adds what another process has gathered."""
        self.first += other.first
        self.second += other.second
        self.same += other.same

    def compute(self) -> dict[str, float]:
        """Recalls and median ranks in both directions: see `vitrail.metrics.retrieval.retrieval`."""
        found = [
            np.unique(numbers, return_index=True, return_inverse=True) for numbers in torch.cat(self.same).numpy().T
        ]
        first, second = (
            torch.cat(vectors)[torch.from_numpy(once)]
            for vectors, (_, once, _) in zip((self.first, self.second), found, strict=True)
        )
        pairs = torch.from_numpy(np.stack([inverse for _, _, inverse in found], axis=1))
        return retrieval(first, second, pairs, self.names)
