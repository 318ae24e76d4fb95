"""What a run says while it goes on: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Report:
    """Shows the step, the loss, images a second and the time left; a context manager.

    Args:
        step: steps done before.
        steps: of the whole run.
        silent: say nothing (all processes but the first).
    """

    def __init__(self, step: int, steps: int, silent: bool):
        self._console = Console(file=sys.stderr, quiet=silent, soft_wrap=True)
        self._steps = steps
        self._silent = silent
        self._start, self._started = step, time.monotonic()
        self._last_line = -float("inf")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=silent or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=step, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Step `step` (counted from 1) is done."""
        self._bar.update(self._task, completed=step)

    def figures(self, step: int, points: dict[str, float], rate: float) -> None:
        """Mean losses of the last steps, and images a second; as a line of its own at most every ten seconds."""
        losses = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in points.items() if "loss" in name]
        text = "  ".join([*losses, f"{rate:.4g} images/s"])
        self._bar.update(self._task, figures=text)
        now = time.monotonic()
        if self._bar.disable and (now - self._last_line > 10 or step == self._steps):
            self._last_line = now
            left = (now - self._started) / max(step - self._start, 1) * (self._steps - step)
            self.say(f"step {step}/{self._steps}  {text}  {_duration(left)} left")

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """The figures of an evaluation."""
        self.say("  ".join([f"step {step}/{self._steps}", *(f"{name} {value:.4g}" for name, value in metrics.items())]))

    def overfitting(self, turned: int, curve: Sequence[tuple[int, float]]) -> None:
        """The held-out loss, (step, value), was least at step `turned` and rises."""
        self.say(
            f"The held-out loss was least at step {turned} ({dict(curve)[turned]:.4g}, now {curve[-1][1]:.4g}) and "
            "rises: more training may make the network worse. --loop.monitor loss --loop.mode min keeps the best "
            "checkpoint."
        )

    def end(self, last: Path, best: Path | None) -> None:
        """All steps are done, now or by an earlier call."""
        self.say(f"The run of {self._steps} steps is done: {last}{f'; its best: {best}' if best else ''}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
