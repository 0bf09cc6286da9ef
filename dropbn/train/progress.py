"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Protocol, Self

import jax
import rich.console
import rich.progress

from dropbn.train import parallel

REFRESH_SECONDS = 0.25
# Steps that may be under way on the devices: enough to keep them busy, few enough to keep the bar honest.
RUN_AHEAD = 2


class Reporter(Protocol):
    """What training reports to: `Progress` for a single run, the display of a study for its members."""

    def resume(self, step: int) -> None:
        """Training begins, or goes on, at `step`."""

    def note(self, text: str) -> None:
        """What is worth knowing before training goes on."""

    def step(self, sums: list[dict]) -> None:
        """One more step; `sums` are those since the last check of the losses, still on the devices."""

    def epoch(self, record: dict) -> None:
        """A run has finished an epoch; `record` is its line of metrics.jsonl."""


class Progress:
    """A progress bar with ETA, loss, accuracy and images/s, and a line for each epoch.

    Args:
      headline: the line above.
      total_steps: length of the run.
      batch_size: images a step.
      console: where to show it; by default the standard output.
    """

    def __init__(
        self, headline: str, total_steps: int, batch_size: int, console: rich.console.Console | None = None
    ) -> None:
        self._console = console or rich.console.Console(highlight=False, markup=False)
        self._headline, self._batch_size = headline, batch_size
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, status="compiling")
        self._shown = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def resume(self, step: int) -> None:
        """The run begins, or goes on, at `step`."""
        self._console.print(self._headline, soft_wrap=True)
        self._bar.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """Prints what is worth knowing before the run goes on."""
        self._console.print(text, soft_wrap=True)

    def step(self, sums: list[dict]) -> None:
        """One more step; `sums` are those since the last check of the losses, still on the devices."""
        self._bar.advance(self._task)
        finished = sums[:-RUN_AHEAD]
        jax.block_until_ready(finished[-1:])
        now = time.monotonic()
        if len(sums) == 1:
            self._started = now
        if self._bar.disable or len(finished) < 2 or now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        last = parallel.unreplicate(finished[-1])
        loss, accuracy = last["loss"] / last["count"], last["correct"] / last["count"]
        # The clock started after the first step, which may have compiled.
        speed = (len(finished) - 1) * self._batch_size / (now - self._started)
        status = f"loss {loss:.3f}  accuracy {accuracy:.1%}  {speed:,.0f} images/s"
        self._bar.update(self._task, status=status)

    def epoch(self, record: dict) -> None:
        """Prints the line of an epoch; `record` is its line of metrics.jsonl."""
        self._console.print(
            f"epoch {record['epoch']:>5.4g}   loss {record['train/loss']:.4f}   "
            f"train {record['train/accuracy']:.2%}, in test mode {record['train/accuracy_test_mode']:.2%}   "
            f"test {record['test/accuracy']:.2%}   {record['images_per_second']:,.0f} images/s",
            soft_wrap=True,
        )
