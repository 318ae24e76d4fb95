"""Optimizers, their parameter groups, and the schedules of learning rate and weight decay.

A module has its say through what it offers, if it does:

- `no_weight_decay() -> set[str]`: names of its parameters that weight decay leaves alone (class token, positions,
  temperatures). Parameters of at most one dimension (biases, norms, scales) are always left alone.
- `layer_count: int` and `layer_of(name) -> int`: the layer, 0 (patches) to `layer_count` - 1 (head), that each of its
  parameters belongs to, for layer-wise learning-rate decay.

Names are the module's own; the module may sit anywhere inside the one that is optimized. What lies outside every
module with layers (a head, a decoder) counts as the last layer.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vitrail.config import check_choices, check_range
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and what drives it from the first step to the last."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with Nesterov momentum."""
    lr: float = 5e-4
    """Learning rate after the warm-up, of the last layer."""
    lr_batch_size: int | None = 512
    """`lr` is stated for this many samples a step and is scaled linearly with the real number; None: as it is."""
    weight_decay: float = 0.05
    """Decoupled weight decay (L2 penalty with sgd) on matrices and filters."""
    weight_decay_end: float | None = None
    """Weight decay at the end, reached along a half cosine; None: constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    momentum: float = 0.9
    """Momentum of sgd."""
    layer_decay: float | None = None
    """Each layer learns at this fraction of the learning rate of the layer above it; None: all alike."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes from `lr` to `min_lr` after the warm-up; constant: not at all."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step of the warm-up; not scaled with the batch."""
    min_lr: float = 1e-5
    """Learning rate at the end; not scaled with the batch."""
    clip: float | None = None
    """Largest L2 norm of the gradient of all parameters together; longer ones are scaled down to it."""

    def __post_init__(self) -> None:
        check_choices(self)
        rates = ("lr", "weight_decay", "weight_decay_end", "warmup_lr", "min_lr")
        check_range(self, *rates, "warmup_epochs", least=0, most=1e30)
        check_range(self, "lr_batch_size", least=1)
        check_range(self, "betas", "momentum", least=0, below=1)
        check_range(self, "layer_decay", above=0, most=1)
        check_range(self, "clip", above=0)


def learning_rate(config: OptimizerConfig, step: int, *, steps: int, steps_per_epoch: float, batch_size: int) -> float:
    """The learning rate of step `step` (0-based) of `steps`, of the last layer.

    With peak p, warm-up of w = warmup_epochs * steps_per_epoch steps (all steps at most) from a to p, end b, and
    t = (step - w) / (steps - w): a + (p - a) step / w in the warm-up, then b + (p - b) (1 + cos(pi t)) / 2 (cosine),
    p + (b - p) t (linear) or p (constant). Neither a nor b is above p, however small the batch makes p.

    Args:
        config: the optimizer's.
        step: 0 to `steps` - 1.
        steps: of the whole run.
        steps_per_epoch: may be a fraction.
        batch_size: samples a step, over all processes and micro batches.
    """
    scale = batch_size / config.lr_batch_size if config.lr_batch_size else 1.0
    peak = config.lr * scale
    warmup = min(config.warmup_epochs * steps_per_epoch, steps)
    if step < warmup:
        first = min(config.warmup_lr, peak)
        return first + (peak - first) * step / warmup
    last = min(config.min_lr, peak)
    time = (step - warmup) / (steps - warmup)
    if config.schedule == "cosine":
        return last + (peak - last) * (1 + math.cos(math.pi * time)) / 2
    return peak + (last - peak) * time if config.schedule == "linear" else peak


def weight_decay(config: OptimizerConfig, step: int, *, steps: int) -> float:
    """The weight decay of step `step` (0-based) of `steps`: a half cosine from the first value to the end value."""
    if config.weight_decay_end is None:
        return config.weight_decay
    progress = (1 + math.cos(math.pi * step / steps)) / 2
    return config.weight_decay_end + (config.weight_decay - config.weight_decay_end) * progress


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> Optimizer:
    """The optimizer of all parameters of `module` that take gradients.

    Its parameter groups carry `lr_scale` (layer-wise decay) and `decay` (whether weight decay applies), by which
    `set_schedules` sets their learning rate and weight decay before each step.

    Raises:
        VitrailError: no parameter takes gradients, or `layer_decay` is set and no part of `module` has layers.
    """
    spared = {prefix + name for prefix, part in _parts(module, "no_weight_decay") for name in part.no_weight_decay()}
    scales = _layer_scales(config.layer_decay, module)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and name not in spared
            groups.setdefault((scales.get(name, 1.0), decay), []).append(parameter)
    if not groups:
        raise VitrailError(f"Nothing in {type(module).__name__} is left to train; do not freeze all of it.")
    described = [
        {"params": parameters, "lr_scale": scale, "decay": decay, "weight_decay": config.weight_decay if decay else 0.0}
        for (scale, decay), parameters in groups.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(described, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas)


def set_schedules(
    optimizer: Optimizer, config: OptimizerConfig, step: int, *, steps: int, steps_per_epoch: float, batch_size: int
) -> float:
    """Sets learning rate and weight decay of every group for step `step`; gives the last layer's learning rate."""
    lr = learning_rate(config, step, steps=steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    decay = weight_decay(config, step, steps=steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr


def _parts(module: nn.Module, attribute: str) -> list[tuple[str, Any]]:
    """The parts of `module`, itself first, that offer `attribute`, each with the prefix of its parameters' names."""
    return [(f"{name}." if name else "", part) for name, part in module.named_modules() if hasattr(part, attribute)]


def _layer_scales(decay: float | None, module: nn.Module) -> dict[str, float]:
    if decay is None:
        return {}
    scales = {
        prefix + name: decay ** (part.layer_count - 1 - part.layer_of(name))
        for prefix, part in reversed(_parts(module, "layer_of"))  # the outermost part has the last word
        for name, _ in part.named_parameters()
    }
    if not scales:
        raise VitrailError(
            f"{type(module).__name__} has no layers to decay the learning rate by; set layer_decay to None."
        )
    return scales
