"""The compiled functions of a run."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from dropbn import models
from dropbn.train import feeds, parallel, steps
from dropbn.train.plan import Plan, structure


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


def create(config, feed: feeds.Resident | feeds.Streamed, plan: Plan) -> Programs:
    """Composes feed and steps for the devices of the plan; the same ones for configs of one `structure`."""
    base = config.optimizer.learning_rate  # which `Hyper.learning_rate_scale` is relative to
    key = structure(config), base, feed.batches, plan.layout, plan.total_steps, plan.steps_per_epoch
    if key not in _KEPT:
        while len(_KEPT) >= _NUMBER_KEPT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = _compose(config, feed.batches, plan)
    return _KEPT[key]


def _compose(config, batches, plan):
    axis_name = plan.layout.axis_name
    of_run = {
        "build": lambda hyper: models.create(config.model, hyper.amount, axis_name),
        "task": plan.task,
        "axis_name": axis_name,
    }

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
