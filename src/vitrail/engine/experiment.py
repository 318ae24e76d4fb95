"""What a run is: a system's own configuration around the loop's."""

from dataclasses import dataclass, field
from typing import Literal, Self

from vitrail.config import check_choices, check_range
from vitrail.data.loader import Dataset, LoaderConfig
from vitrail.engine.task import Task


@dataclass(frozen=True)
class Loop:
    """How long, how fast and on what to train; everything is counted in optimizer steps.

    An epoch is as many samples as the data set has; it may be a fraction of a step, or end inside one.
    """

    epochs: float = 100.0
    """Length of the run in epochs."""
    steps: int | None = None
    """Length of the run in steps, instead of `epochs`."""
    batch_size: int = 256
    """Samples a step, over all processes and micro batches."""
    accumulate: int = 1
    """Micro batches that each process makes of its share of a batch, one after the other, to save memory."""
    seed: int = 0
    """Of the weights, the order of the samples, augmentation and dropout."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """float32; bfloat16 or float16 where it is safe, with float32 weights."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """What to train on; auto: the best that there is."""
    devices: int | Literal["auto"] = 1
    """Devices (on CPUs: processes) a machine; auto: all. Under torchrun, as many as it started."""
    nodes: int = 1
    """Machines, which must see the same run folder; torchrun or SLURM starts each, or MASTER_ADDR, MASTER_PORT and
    NODE_RANK in its environment tell it of the others."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Several processes each keep the whole model (ddp) or a share of every tensor (fsdp); auto: ddp."""
    compile: bool = False
    """Compile the task with torch.compile; what it draws at random, such as stochastic depth, differs from eager."""
    ema: float | None = None
    """Decay a step of the moving average of the weights that is evaluated and saved beside them; None: no average."""
    log_every: int = 50
    """Steps between two points of the training curves."""
    evaluate_every: float = 1.0
    """Epochs between two evaluations; there is always one at the end."""
    checkpoint_every: int = 500
    """Steps between two writings of the last checkpoint; it is always written at the end."""
    keep_every: int | None = None
    """Steps between two checkpoints that are kept."""
    monitor: str | None = None
    """Metric by which the best checkpoint is chosen; None: no best checkpoint."""
    mode: Literal["max", "min"] = "max"
    """Whether the monitored metric is to be large or small."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "epochs", above=0, most=10**9)
        check_range(self, "evaluate_every", least=1e-6)
        check_range(self, "steps", least=1, most=10**12)
        check_range(self, "batch_size", "accumulate", "nodes", least=1, most=2**24)
        check_range(self, "log_every", "checkpoint_every", "keep_every", least=1)
        check_range(self, "seed", least=0)
        check_range(self, "ema", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A complete, typed configuration of a run; each system adds its data, networks and optimizers."""

    loop: Loop = field(default_factory=Loop)
    """Length, batch, devices, logging, checkpoints."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Workers, repeated augmentation, corrupt files."""
    weights: str | None = None
    """Weights to start from: a published name or a file; a head for another number of classes is left out."""

    def prepared(self) -> Self:
        """The experiment with what must be read from the data filled in (class names); called once, before training.

        The checkpoint carries this one, and opens without the data.
        """
        return self

    def build_task(self) -> Task:
        """The task with fresh weights, drawn from torch's global generator; needs neither data nor network."""
        raise NotImplementedError

    def train_dataset(self) -> Dataset:
        """What to train on."""
        raise NotImplementedError

    def validation_dataset(self) -> Dataset | None:
        """What to evaluate on; None: nothing."""
        return None
