"""The compiled functions of a run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from dropbn import models
from dropbn.train import feeds, parallel, steps
from dropbn.train.plan import Plan


class Programs(NamedTuple):
    """The compiled functions of a run; each takes and returns values stacked over the devices.

    Attributes:
      train: (state, the feed's train inputs, hyper) -> (state, sums). The state given is used up.
      batch: the feed's eval inputs -> a masked batch for `evaluate`.
      evaluate: (state, masked batch) -> sums.
      nonfinite: what `train` takes -> what `steps.nonfinite` finds. It is compiled only if it is called.
    """

    train: Callable
    batch: Callable
    evaluate: Callable
    nonfinite: Callable


# Those of the last few kinds of runs: a study's next members need no compilation.
_KEPT = {}
_NUMBER_KEPT = 2


def create(plan: Plan, feed: feeds.Resident | feeds.Streamed) -> Programs:
    """Composes feed and steps for the devices of a plan; the same ones for plans of one `structure`."""
    base = plan.learning_rate  # which `Hyper.learning_rate_scale` is relative to
    key = plan.structure, base, feed.batches, plan.layout, plan.total_steps, plan.steps_per_epoch
    if key not in _KEPT:
        while len(_KEPT) >= _NUMBER_KEPT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = _compose(plan, feed.batches)
    return _KEPT[key]


def _compose(plan, batches):
    axis_name = plan.layout.axis_name

    def build(hyper):
        return models.create(dataclasses.replace(plan.architecture, amount=hyper.amount), axis_name)

    of_run = {"build": build, "task": plan.task, "axis_name": axis_name}

    def train(state, inputs, hyper):
        batch = batches.train(inputs, state.step, hyper.seed)
        return steps.train_step(state, batch, hyper, tx=plan.tx, **of_run)

    def nonfinite(state, inputs, hyper):
        return steps.nonfinite(state, batches.train(inputs, state.step, hyper.seed), hyper, **of_run)

    on_each = functools.partial(parallel.on_each, layout=plan.layout)
    return Programs(
        on_each(train, donate=0),
        on_each(batches.evaluate),
        on_each(functools.partial(steps.eval_step, model=plan.model, task=plan.task, axis_name=axis_name)),
        on_each(nonfinite),
    )
