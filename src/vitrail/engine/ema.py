"""A moving average of everything a task remembers in floating point."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class MovingAverage:
    """average <- decay * average + (1 - decay) * value, of floating-point parameters and persistent buffers.

    It starts at the values of the moment it is made. Of a sharded module, each process averages its own shards.
    """

    def __init__(self, module: nn.Module, decay: float):
        self._decay = decay
        self._module = module
        self._averages = [value.clone() for value in self._values()]

    def _values(self) -> list[Tensor]:
        """The module's tensors themselves; asked for anew, since wrappers may replace them."""
        return [
            value.to_local() if isinstance(value, DTensor) else value
            for value in self._module.state_dict().values()
            if value.is_floating_point()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Takes one step."""
        torch._foreach_lerp_(self._averages, self._values(), 1 - self._decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Starts again from the module's values."""
        torch._foreach_copy_(self._averages, self._values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averages in the place of its values, which come back after."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, value in zip(self._averages, self._values(), strict=True):
            kept = value.clone()
            value.copy_(average)
            average.copy_(kept)
