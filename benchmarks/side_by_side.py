"""Rivals timed in turns: each in a process of its own, one at work at a time.

A machine that others use too changes its speed from minute to minute. What is compared therefore runs in
turns, each round gives a ratio, and the median of the ratios is reported with their quartiles.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Entrant(NamedTuple):
    """One of those that are compared.

    Attributes:
      name: what the rows call it.
      setup: an importable function that returns (what one round does, facts about it). It is called in the
        entrant's process, and so is the first round, which is not counted.
      args: its arguments.
      environment: variables of that process, such as XLA_FLAGS.
      one_core: whether it may use one core alone, and its processor time is what counts: that holds still on
        a machine that others use too, where threads that wait for one another do not.
    """

    name: str
    setup: Callable[..., tuple[Callable[[], object], dict]]
    args: tuple = ()
    environment: Mapping[str, str] = {}
    one_core: bool = False


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float

    def __str__(self):
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


class Row(NamedTuple):
    """A line of a benchmark's table.

    Attributes:
      what: what was measured.
      measured: what came out.
      target: what should have come out; "" where there is no target.
      met: whether it did; None without a target, or where it was not run.
    """

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


def spread(values) -> Spread:
    """Median and quartiles of some values."""
    return Spread(*np.quantile(np.fromiter(values, float), (0.25, 0.5, 0.75)))


def at_least(what: str, found: Spread, target: float, words: str = "") -> Row:
    """The row of a ratio that should be `target` or more."""
    return Row(what, str(found), words or f"at least {target:g}", bool(found.median >= target))


def at_most(what: str, found: Spread, target: float, words: str = "") -> Row:
    """The row of a ratio that should be `target` or less."""
    return Row(what, str(found), words or f"at most {target:g}", bool(found.median <= target))


def race(
    entrants: list[Entrant], rounds: int, starts: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Runs the entrants in turns.

    Args:
      entrants: who races.
      rounds: how many turns each has after a start.
      starts: how often all are started anew. A process may be a quarter slower than another that runs the
        same program, for as long as it lives.

    Returns:
      (name -> seconds of each round of all starts, name -> facts).
    """
    seconds = {entrant.name: [] for entrant in entrants}
    for _ in range(starts):
        with contextlib.ExitStack() as stack:
            started = {entrant.name: stack.enter_context(_process(entrant)) for entrant in entrants}
            for _ in range(rounds):
                for name, (pipe, _) in started.items():
                    pipe.send("go")
                    seconds[name].append(pipe.recv())
                    time.sleep(0.05)  # until threads that spin after their work are asleep
            facts = {name: facts for name, (_, facts) in started.items()}
    for name, of_entrant in seconds.items():  # A race may take minutes: this shows that it goes on.
        print(f"  {name}: {spread(of_entrant)} s", file=sys.stderr, flush=True)
    return {name: np.array(of_entrant) for name, of_entrant in seconds.items()}, facts


def ask(entrant: Entrant) -> dict:
    """An entrant's facts, where these are all that is wanted of it."""
    with _process(entrant) as (_, facts):
        return facts


def turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each round of functions of this process, in turns; the first round is not counted."""
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return {name: np.array(of_run) for name, of_run in seconds.items()}


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a call takes by a clock."""
    started = clock()
    run()
    return clock() - started


def others() -> float:
    """Share of all cores' time that is in use while this process sleeps a second; 0 where it is not known."""
    counters = pathlib.Path("/proc/stat")
    if not counters.exists():
        return 0.0

    def read():
        numbers = [int(number) for number in counters.read_text().splitlines()[0].split()[1:]]
        return sum(numbers), numbers[3] + numbers[4]  # all, idle or waiting for a disk

    before = read()
    time.sleep(1)
    total, idle = (after - earlier for after, earlier in zip(read(), before, strict=True))
    return 1 - idle / max(total, 1)


def has_torch() -> bool:
    """Whether PyTorch, which the benchmarks compare with but do not need, is installed."""
    return importlib.util.find_spec("torch") is not None


@functools.cache
def has_accelerator() -> bool:
    """Whether JAX would run on something else than a CPU; another process asks and lets go of it."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.split()[-1] != "cpu"


def show(rows: list[Row]) -> None:
    """Prints a benchmark's rows."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        verdict = "" if row.met is None else ("  met" if row.met else "  missed")
        target = f"  [{row.target}]" if row.target else ""
        print(f"{row.what:<{width}}  {row.measured}{target}{verdict}")


@contextlib.contextmanager
def _process(entrant):
    """(pipe that takes "go" and gives seconds, facts) of an entrant that is ready."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, entrant), daemon=True)
    threads = {"OMP_NUM_THREADS": "1"} if entrant.one_core else {}
    with _environment({**entrant.environment, **threads}):
        process.start()
    theirs.close()
    try:
        try:
            facts = pipe.recv()
        except EOFError:
            raise RuntimeError(f"{entrant.name} ended before it was ready; see above.") from None
        yield pipe, facts
    finally:
        pipe.close()
        process.join()


def _serve(pipe, entrant):
    if entrant.one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    run, facts = entrant.setup(*entrant.args)
    run()
    pipe.send(facts)
    clock = time.process_time if entrant.one_core else time.perf_counter
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(timed(run, clock))


@contextlib.contextmanager
def _environment(changes):
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
