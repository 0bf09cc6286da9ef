"""How a study shows itself: a line for each member that ends, and bars for what is under way."""

import contextlib
import time
from collections.abc import Iterator
from typing import Self

import jax
import rich.console
import rich.progress

from dropbn.train import progress


class StudyProgress:
    """Bars for the whole study and for the members in training, with the remaining time, on a terminal."""

    def __init__(
        self, number: int, finished: int, cost: float, console: rich.console.Console | None = None
    ) -> None:
        """Prepares the bars.

        Args:
          number: how many members the study has.
          finished: how many of them were finished before.
          cost: the cost of all other members, in the unit that `group` uses too.
          console: where everything is shown; by default the standard output.
        """
        self.console = console or rich.console.Console(highlight=False, markup=False)
        self._number, self._ended = number, finished
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=10),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            transient=True,
            speed_estimate_period=600,
            disable=not self.console.is_terminal,
        )
        self._study = self._bars.add_task("", total=cost, status="")
        self._say()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def group(self, names: list[str], cost: float, total_steps: int) -> Iterator["GroupProgress"]:
        """Shows members that train together.

        Args:
          names: their names.
          cost: the cost of all of them.
          total_steps: the steps that each of them takes.

        Yields:
          What `dropbn.train.loop.train_together` takes as its `progress`.
        """
        task = self._bars.add_task(_short(names), total=total_steps, status="compiling")
        before = self._bars.tasks[0].completed
        group = GroupProgress(self._bars, task, self._study, cost / total_steps)
        try:
            yield group
        finally:
            self._bars.remove_task(task)
            self._bars.update(self._study, completed=before + cost)

    def ended(self, name: str, line: str) -> None:
        """A member has finished or failed; `line` says how."""
        self._ended += 1
        self.console.print(f"{name}: {line}", soft_wrap=True)
        self._say()

    def _say(self):
        self._bars.update(self._study, description=f"{self._ended} of {self._number} members")


class GroupProgress:
    """The bar of members that train together."""

    def __init__(
        self,
        bars: rich.progress.Progress,
        task: rich.progress.TaskID,
        study: rich.progress.TaskID,
        cost_of_step: float,
    ) -> None:
        self._bars, self._task, self._study, self._cost = bars, task, study, cost_of_step
        self._shown, self._steps = 0.0, 0

    def resume(self, step: int) -> None:
        """The members begin, or go on, at `step`."""
        self._bars.update(self._task, completed=step, status="")
        self._bars.advance(self._study, step * self._cost)

    def note(self, text: str) -> None:
        """Says what is worth knowing before they go on."""
        self._bars.console.print(text, soft_wrap=True)

    def step(self, sums: list[dict]) -> None:
        """One more step; `sums` are those since the last look, still on the devices."""
        jax.block_until_ready(sums[: -progress.RUN_AHEAD][-1:])
        self._steps += 1
        if time.monotonic() - self._shown > progress.REFRESH_SECONDS:
            self._bars.advance(self._task, self._steps)
            self._bars.advance(self._study, self._steps * self._cost)
            self._shown, self._steps = time.monotonic(), 0

    def epoch(self, record: dict) -> None:
        """One of the members has finished an epoch; `record` is its line of metrics.jsonl."""
        status = f"train {record['train/accuracy']:.1%}  test {record['test/accuracy']:.1%}"
        self._bars.update(self._task, status=status)

    def measure(self) -> None:
        """The members are trained; what a study keeps of them is being measured."""
        self._bars.update(self._task, status="measuring")


def _short(names):
    """The names of a group in 30 characters; a name is cut at its front, because its end tells it apart."""
    more = f" + {len(names) - 1}" if len(names) > 1 else ""
    room = 30 - len(more)
    return (names[0] if len(names[0]) <= room else "\N{HORIZONTAL ELLIPSIS}" + names[0][1 - room :]) + more
