"""The scalars of the steps since the last point of the training curves."""

import math
from collections import defaultdict
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor


class Window:
    """Gathers scalars on the device, and brings them to the host only when asked to: a device is not kept waiting."""

    def __init__(self, fabric: Fabric):
        self._fabric = fabric
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._values: list[dict[str, float]] = []

    def add(self, step: int, terms: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds `weight` times each term to those of the same name and step."""
        pending = self._pending.setdefault(step, {})
        for name, term in terms.items():
            term = (term.full_tensor() if isinstance(term, DTensor) else term).detach().float() * weight
            pending[name] = pending[name] + term if name in pending else term

    def collect(self) -> dict[int, dict[str, float]]:
        """The scalars by step, mean over the processes, that were added since the last call."""
        pending, self._pending = self._pending, {}
        if not pending:
            return {}
        flat = torch.stack([term.to(self._fabric.device) for terms in pending.values() for term in terms.values()])
        # Gathered and then added in one fixed order, so that the sums do not depend on how many are sent together.
        parts = [flat]
        if self._fabric.world_size > 1:
            parts = [torch.empty_like(flat) for _ in range(self._fabric.world_size)]
            torch.distributed.all_gather(parts, flat)
        values = iter(torch.stack(parts).cpu().double().mean(dim=0).tolist())
        collected = {step: {name: next(values) for name in terms} for step, terms in pending.items()}
        self._values += collected.values()
        return collected

    def close(self) -> dict[str, float]:
        """The mean of each scalar over the collected steps that have it, finite; the window is then empty."""
        gathered: dict[str, list[float]] = defaultdict(list)
        for values in self._values:
            for name, value in values.items():
                gathered[name] += [value] if math.isfinite(value) else []
        self._values = []
        return {name: math.fsum(values) / len(values) for name, values in gathered.items() if values}

    def state(self) -> list[dict[str, Any]]:
        """What has been collected, for a checkpoint: a float in JSON keeps every bit."""
        return [
            {name: value if math.isfinite(value) else None for name, value in values.items()} for values in self._values
        ]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Puts back what `state` gave."""
        self._values = [
            {name: math.nan if value is None else value for name, value in values.items()} for values in state
        ]
