"""Checkpoints: one safetensors file with all tensors, and JSON in its header for everything else.

Tensors are named `model.*` (parameters and persistent buffers of the task), `ema.*` (their moving average) and
`optimizer.<phase>.<parameter>.<state>`. A file is the same whether the run was sharded or not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vitrail.config import Json, from_json
from vitrail.engine.experiment import Experiment
from vitrail.engine.task import Task
from vitrail.errors import FileError
from vitrail.files import atomic_path


@dataclass(frozen=True)
class Header:
    """All of a checkpoint but its tensors."""

    step: int
    """Optimizer steps done."""
    configuration: Json
    """The experiment, by `vitrail.config.to_json`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the latest evaluation."""
    loop: dict[str, Any] = field(default_factory=dict)
    """What the loop must remember to go on."""
    version: str = version("vitrail")
    """Of the library that wrote the file."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: its header is read, its tensors are read when asked for."""

    path: Path
    header: Header

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix` ("model", "ema", "optimizer.train"), by the rest of their names, on the CPU.

        Raises:
            FileError: the file has changed since it was opened, and can no longer be read.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                return {
                    name.removeprefix(f"{prefix}."): file.get_tensor(name)
                    for name in file.keys()  # noqa: SIM118 (the file is no mapping)
                    if name.startswith(f"{prefix}.")
                }
        except (OSError, SafetensorError) as error:
            raise FileError(f"Cannot read {self.path} ({error}); use another checkpoint of the run.") from None


def save(path: str | Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():  # the format has no tensors that share memory (tied weights)
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        with atomic_path(path) as temporary:
            save_file(separate, temporary, {"vitrail": json.dumps(asdict(header))})
    except (OSError, SafetensorError) as error:
        raise FileError(f"Cannot write {path} ({error}); make room, or choose another folder.") from None


def load(path: str | Path) -> Checkpoint:
    """Opens a checkpoint: a file, or the folder of a run, of which the best checkpoint counts, else the last.

    Raises:
        FileError: there is no such file, it is damaged, or it is not a checkpoint of Vitrail.
    """
    path = Path(path)
    if path.is_dir():
        candidates = [path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")]
        found = [candidate for candidate in candidates if candidate.exists()]
        if not found:
            raise FileError(f"The folder {path} holds no checkpoint; give a checkpoint or the folder of a run.")
        path = found[0]
    if not path.exists():
        raise FileError(f"There is no checkpoint {path}; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        stored = json.loads(metadata["vitrail"])
        # Other versions may have written fields that this one has no use for.
        header = Header(**{known.name: stored[known.name] for known in fields(Header) if known.name in stored})
    except (OSError, SafetensorError):
        raise FileError(
            f"{path} is not a whole safetensors file: it is cut short, damaged or of another kind; "
            "use another checkpoint of the run."
        ) from None
    except (KeyError, TypeError, ValueError):
        raise FileError(
            f"{path} is a safetensors file, but not a checkpoint of a run of Vitrail; load bare weights as weights."
        ) from None
    return Checkpoint(path, header)


def open_task(path: str | Path, ema: bool = True) -> tuple[Any, Any]:
    """The experiment (an `Experiment`) and the task of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: a checkpoint, or the folder of a run.
        ema: take the moving average of the weights where there is one.

    Raises:
        FileError: the file cannot be read, or its tensors do not fit the configuration.
        VitrailError: the configuration is of another version.
    """
    checkpoint = load(path)
    try:
        experiment = from_json(checkpoint.header.configuration)
        if not isinstance(experiment, Experiment):
            raise FileError(f"{checkpoint.path} does not describe an experiment; train it anew with this version.")
        task: Task = experiment.build_task()
    except (AttributeError, TypeError, ValueError) as error:  # values of other types than the fields have
        raise FileError(
            f"The configuration in {checkpoint.path} is damaged ({error}); open it with the version that wrote it."
        ) from error
    tensors = checkpoint.tensors("ema") if ema else {}
    load_module(task, tensors or checkpoint.tensors("model"), checkpoint.path)
    return experiment, task.eval()


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, whole and on the CPU; every process of a sharded run must ask."""
    return {name: _whole(value) for name, value in module.state_dict().items()}


@torch.no_grad()
def load_module(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copies whole tensors into a module, sharded or not.

    Raises:
        FileError: names or shapes differ.
    """
    state = module.state_dict()
    wrong = sorted(state.keys() ^ tensors.keys())
    wrong += [name for name in state.keys() & tensors.keys() if state[name].shape != tensors[name].shape]
    if wrong:
        raise FileError(
            f"{source} does not fit its own configuration: {len(wrong)} tensors differ, "
            f"{', '.join(wrong[:5])} among them; open it with the version that wrote it."
        )
    for name, value in state.items():
        value.copy_(_like(value, tensors[name]))


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by `<parameter>.<state>`, whole and on the CPU; every process of a sharded run must ask."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}.{key}": _whole(value)
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


@torch.no_grad()
def load_optimizer(optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts whole tensors of `optimizer_tensors` back; learning rates and the like are the schedules' to set."""
    parameters = dict(module.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        parameter = parameters[owner]
        # Optimizers count their steps in a scalar on the CPU, which is neither moved nor sharded.
        optimizer.state[parameter][key] = value.clone() if key == "step" else _like(parameter.detach(), value)


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().contiguous()


def _like(reference: Tensor, value: Tensor) -> Tensor:
    """`value` on the device, in the memory layout and in the shards of `reference`."""
    if isinstance(reference, DTensor):
        # Every process has read the whole tensor, and so none need be sent.
        value = value.to(reference.device)
        return distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)
    return torch.empty_like(reference, dtype=value.dtype).copy_(value)
