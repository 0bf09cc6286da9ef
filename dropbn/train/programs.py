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
      train_step: (state, the feed's train inputs, hyper) -> (state, sums). The given state is used up.
      eval_batch: the feed's eval inputs -> a masked batch for `eval_step`.
      eval_step: (state, masked batch) -> sums.
      nonfinite: what `train_step` takes -> what `steps.nonfinite` finds. It is compiled only if it is called.
    """

    train_step: Callable
    eval_batch: Callable
    eval_step: Callable
    nonfinite: Callable


# The last few programs: a study's next members need no compilation.
_CACHED: dict[tuple, Programs] = {}
_MOST_CACHED = 2


def create(plan: Plan, feed: feeds.Resident | feeds.Streamed) -> Programs:
    """Composes feed and steps for the devices of a plan; plans of one `structure` share the result."""
    base = plan.learning_rate  # which `Hyper.learning_rate_scale` is relative to
    key = plan.structure, base, feed.batcher, plan.layout, plan.total_steps, plan.steps_per_epoch
    if key not in _CACHED:
        while len(_CACHED) >= _MOST_CACHED:
            del _CACHED[next(iter(_CACHED))]
        _CACHED[key] = _compose(plan, feed.batcher)
    return _CACHED[key]


def _compose(plan, batcher):
    axis_name = plan.layout.axis_name

    def build(hyper):
        return models.create(dataclasses.replace(plan.architecture, amount=hyper.amount), axis_name)

    def train_step(state, inputs, hyper):
        batch = batcher.train_batch(inputs, state.step, hyper.seed)
        return steps.train_step(
            state, batch, hyper, build=build, tx=plan.tx, task=plan.task, axis_name=axis_name
        )

    def eval_step(state, batch):
        return steps.eval_step(state, batch, model=plan.model, task=plan.task, axis_name=axis_name)

    def nonfinite(state, inputs, hyper):
        batch = batcher.train_batch(inputs, state.step, hyper.seed)
        return steps.nonfinite(state, batch, hyper, build=build, task=plan.task, axis_name=axis_name)

    on_each = functools.partial(parallel.on_each, layout=plan.layout)
    return Programs(
        train_step=on_each(train_step, donate=0),
        eval_batch=on_each(batcher.eval_batch),
        eval_step=on_each(eval_step),
        nonfinite=on_each(nonfinite),
    )
