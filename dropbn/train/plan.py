"""What a config means for a dataset on this machine."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import optax

from dropbn import data, models
from dropbn.errors import DropbnError, unknown
from dropbn.nn import norm
from dropbn.train import durations, losses, optimizer, parallel, steps


class Plan(NamedTuple):
    """What a config means for a dataset on this machine.

    Attributes:
      model: the network on one device, for evaluation.
      tx: the optimizer.
      task: loss and score of images.
      layout: where it trains.
      steps_per_epoch: full batches in an epoch.
      total_steps: length of the run.
      checkpoint_every: largest number of steps from one checkpoint to the next.
      log_every: steps from one look at the losses to the next.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    task: Callable
    layout: parallel.Layout
    steps_per_epoch: int
    total_steps: int
    checkpoint_every: int
    log_every: int


def make_plan(config, dataset: data.Dataset, layout: parallel.Layout | None = None) -> Plan:
    """Checks a config against a dataset and derives the run's numbers; fills in `model.num_classes`.

    Args:
      config: a config with the fields of `configs/base.py`.
      dataset: its data.
      layout: where it trains; by default on all devices that its batch can be divided among.

    Raises:
      DropbnError: what does not fit, before anything is written.
    """
    num_examples = dataset.train.num_examples
    for field, low, high in (
        ("seed", 0, 2**31 - 1),
        ("optimizer.learning_rate", 0, None),
        ("optimizer.momentum", 0, None),
        ("optimizer.weight_decay", 0, None),
        ("optimizer.decay_factor", 0, None),
        ("batch_size", 1, num_examples),
        ("data.subset_seed", -1, 2**31 - 1),
        ("data.crop_padding", 0, 10**5),
        ("data.rotation", 0, 180),
        ("data.jitter", 0, 1),
        ("data.workers", 0, None),
        ("model.width", 1, None),
        ("model.cardinality", 1, None),
        ("model.bn.momentum", 0, 1 - 1e-6),  # at 1 the statistics would never move
        ("model.bn.epsilon", 1e-12, None),
        ("model.sparsity.target", 1e-6, 1 - 1e-6),
        ("model.sparsity.weight", 0, None),
        ("eval.train_examples", 0, None),
    ):
        value = functools.reduce(getattr, field.split("."), config)
        if not low <= value <= (math.inf if high is None else high):  # NaN fits nowhere.
            raise DropbnError(
                f"{field}={value}: give {low} to {high}." if high else f"{field}={value}: give {low} or more."
            )
    if config.task not in losses.TASKS:
        raise unknown("task", config.task, losses.TASKS)
    steps_per_epoch = num_examples // config.batch_size
    config.model.num_classes = config.model.num_classes or dataset.num_classes
    if config.model.num_classes < dataset.num_classes:
        raise DropbnError(
            f"model.num_classes={config.model.num_classes}, but the data has {dataset.num_classes} classes; "
            "0 takes as many as the data has."
        )
    to_steps = functools.partial(durations.steps, batch_size=config.batch_size, num_examples=num_examples)
    total_steps = to_steps(config.duration)
    if not total_steps:
        raise DropbnError(f"duration={config.duration!r} is less than one step.")
    layout = layout or parallel.together(config.batch_size)
    norm.split_groups(config.model.bn.group_size, config.batch_size // layout.share, layout.share)
    return Plan(
        models.create(config.model),
        optimizer.create(config.optimizer, to_steps, total_steps),
        losses.TASKS[config.task],
        layout,
        steps_per_epoch,
        total_steps,
        max(1, to_steps(config.checkpoint_every)),
        max(1, to_steps(config.log_every)),
    )


def structure(config) -> str:
    """What of a config is compiled, as JSON: all but the numbers that a step takes as arguments."""
    config = config.copy_and_resolve_references()
    config.model.block, config.model.head = map(str, models.orders(config.model))
    config.model.place, config.seed = "", 0
    config.data.subset_seed = min(config.data.subset_seed, 0)
    if (
        config.model.noise.scale_at == "train"
    ):  # Else the amount also acts in test mode, where it is no argument.
        config.model.noise.rate = config.model.noise.beta = 0.0
    config.optimizer.learning_rate = float(config.optimizer.learning_rate > 0)
    return config.to_json(sort_keys=True)


def abstract_state(config, dataset: data.Dataset, plan: Plan) -> steps.TrainState:
    """The shapes of the run's state, without computing it; refuses orders that do not fit the images."""
    create = functools.partial(steps.create_state, plan.model, plan.tx, config.seed)
    return jax.eval_shape(lambda: create(dataset.train.image_shape))
