"""What every metric answers."""

from typing import Any, Protocol, Self


class Metric(Protocol):
    """Gathers outputs batch by batch, on the CPU, and merges with the same metric of another process."""

    def update(self, *args: Any, **outputs: Any) -> None:
        """Adds one batch: the outputs of a task's "evaluate" phase, by name."""

    def merge(self, other: Self) -> None:
        """Adds what `other` has gathered."""

    def compute(self) -> dict[str, float]:
        """The figures by name, of all that has been added."""
        ...
