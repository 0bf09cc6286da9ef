"""Training of a study's work items: each member that ends is summarized, and the others go on if it fails."""

import time
import traceback
from collections.abc import Sequence

import jax

from dropbn.errors import DropbnError, headline
from dropbn.study import finished_runs, provenance, work_items
from dropbn.study.numbers import largest_shift
from dropbn.study.progress import StudyProgress
from dropbn.study.work_items import WorkItem
from dropbn.train import loop, parallel, workdir
from dropbn.train.steps import TrainState
from dropbn.train.summary import summarize

# How many kinds of networks keep their programs. Linux lets a process map 65,530 pieces of memory; after some
# hundred programs for the CPU it ends in a segmentation fault.
_MOST_COMPILED = 8


def train(todo: Sequence[WorkItem], shown: StudyProgress) -> dict[str, str]:
    """Trains members and summarizes their runs.

    Args:
      todo: the work items.
      shown: shows their progress.

    Returns:
      {name: error} of the members that failed. The error is also in error.txt beside the run.
    """
    failed: dict[str, str] = {}
    compiled: set[str] = set()
    for group in work_items.groups(todo):
        compiled.add(group[0].plan.structure)
        if len(compiled) > _MOST_COMPILED:
            jax.clear_caches()
            compiled.clear()
        failed |= _train_together(group, shown)
    return failed


def _train_together(group, shown):
    """Trains and summarizes a group of work items; returns {name: error} of the members that failed."""
    given, plan = [item.member for item in group], group[0].plan
    names, started, failed = [member.name for member in given], time.monotonic(), {}
    with shown.group(names, sum(item.flops for item in group), plan.total_steps) as progress:
        try:
            outcomes: Sequence[TrainState | Exception] = loop.train_together(
                [item.plan for item in group],
                [member.directory for member in given],
                [item.dataset for item in group],
                progress,
            )
        except Exception as error:  # Whatever it is, the other members can still be run.
            outcomes = [error] * len(given)
        if plan.layout.processes > 1 and not parallel.is_first():
            return {}
        progress.measure()
        for item, outcome in zip(group, outcomes, strict=True):
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                line = _summarize(item, outcome)
            except Exception as error:
                known = isinstance(error, DropbnError)
                failed[item.member.name] = str(error) if known else traceback.format_exc()
                line = _keep_error(item.member, failed[item.member.name])
            shown.ended(item.member.name, f"{line}   {time.monotonic() - started:.0f} s")
    return failed


def _summarize(item, state):
    """Marks a member as finished; returns the line that says what was measured."""
    member, model = item.member, work_items.model(item.plan.structure)
    records = workdir.read_metrics(member.directory)
    summary = summarize(item.plan.config, item.dataset, state, records, model)
    summary["provenance"] = provenance.of_run(item.plan.config)
    finished_runs.write(member.directory, summary)
    shift, adjusted = largest_shift(summary["shift"]), summary["recalibrated"].get("li2018_torch")
    more = f", adjusted {adjusted:.2%}   largest shift {shift:.3f}" if shift and adjusted is not None else ""
    return f"test {summary['accuracy']:.2%}{more}"


def _keep_error(member, error):
    """Marks a member as failed; returns the line that says why."""
    try:
        file = finished_runs.write_error(member.directory, error)
    except DropbnError:
        return f"failed: {headline(error)}"
    return f"failed: {headline(error)} ({file})"
