"""A config resolved: what it means for a dataset on this machine."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from dropbn import data, models
from dropbn.errors import DropbnError, shown, unknown
from dropbn.nn import norm
from dropbn.train import durations, losses, optimizer, parallel, steps

_LARGEST = float(np.finfo(np.float32).max)
# field, least, largest
_RANGES = (
    ("seed", 0, 2**31 - 1),
    ("optimizer.learning_rate", 0, None),
    ("optimizer.momentum", 0, None),
    ("optimizer.weight_decay", 0, None),
    ("optimizer.decay_factor", 0, None),
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
)


class Plan(NamedTuple):
    """A run, resolved from its config, its dataset and this machine; training reads nothing else of a config.

    Attributes:
      config: what is saved with the run: the given config with `model.num_classes` filled in.
      structure: what is compiled, as JSON: the config without the numbers that a step takes as arguments.
      architecture: the network.
      model: the network on one device, for evaluation.
      tx: the optimizer.
      task: loss and score of images.
      layout: the devices.
      seed: determines weights, order, augmentation and noise.
      learning_rate: the peak of its schedule.
      batch_size: images a step, over all devices.
      crop_padding, flip: the augmentation of images in memory.
      workers: processes that read streamed images; 0 for threads.
      eval_examples: training images that are measured in test mode after each epoch; 0 for all.
      steps_per_epoch: full batches in an epoch.
      total_steps: length of the run.
      checkpoint_every: largest number of steps from one checkpoint to the next.
      log_every: largest number of steps from one check of the losses to the next.
    """

    config: ConfigDict
    structure: str
    architecture: models.Architecture
    model: nn.Module
    tx: optax.GradientTransformation
    task: Callable
    layout: parallel.Layout
    seed: int
    learning_rate: float
    batch_size: int
    crop_padding: int
    flip: bool
    workers: int
    eval_examples: int
    steps_per_epoch: int
    total_steps: int
    checkpoint_every: int
    log_every: int


def make_plan(config: ConfigDict, dataset: data.Dataset, layout: parallel.Layout | None = None) -> Plan:
    """Resolves a config, and checks it against a dataset.

    Args:
      config: a config with the fields of `configs/base.py`; it stays as it is.
      dataset: its data.
      layout: the devices; by default as many as its batch can be divided among.

    Raises:
      DropbnError: what does not fit, before anything is written.
    """
    num_examples = dataset.train.num_examples
    _check_ranges(config, (*_RANGES, ("batch_size", 1, num_examples)))
    if config.task not in losses.TASKS:
        raise unknown("task", config.task, losses.TASKS)
    config = _with_classes(config, dataset.num_classes)
    to_steps = functools.partial(durations.to_steps, batch_size=config.batch_size, num_examples=num_examples)
    total_steps = to_steps(config.duration)
    if not total_steps:
        raise DropbnError(f"duration={config.duration!r} is less than one step.")
    layout = layout or parallel.together(config.batch_size)
    norm.split_groups(config.model.bn.group_size, config.batch_size // layout.share, layout.share)
    architecture = models.resolve(config.model)
    return Plan(
        config=config,
        structure=_structure(config, architecture),
        architecture=architecture,
        model=models.create(architecture),
        tx=optimizer.create(config.optimizer, to_steps, total_steps),
        task=losses.TASKS[config.task],
        layout=layout,
        seed=config.seed,
        learning_rate=config.optimizer.learning_rate,
        batch_size=config.batch_size,
        crop_padding=config.data.crop_padding,
        flip=config.data.flip,
        workers=config.data.workers,
        eval_examples=config.eval.train_examples,
        steps_per_epoch=num_examples // config.batch_size,
        total_steps=total_steps,
        checkpoint_every=max(1, to_steps(config.checkpoint_every)),
        log_every=max(1, to_steps(config.log_every)),
    )


def _check_ranges(config, ranges):
    for field, low, high in ranges:
        value = functools.reduce(getattr, field.split("."), config)
        if not low <= value <= (_LARGEST if high is None else high):  # NaN fits nowhere.
            wanted = f"{low} to {high}" if high else f"{low} or more, at most {_LARGEST:.3g}"
            raise DropbnError(f"{field}={shown(value)}: give {wanted}.")


def _with_classes(config, num_classes):
    """A copy of the config with as many outputs as the data has classes, or as many as it says."""
    config = config.copy_and_resolve_references()
    config.model.num_classes = config.model.num_classes or num_classes
    if config.model.num_classes < num_classes:
        raise DropbnError(
            f"model.num_classes={config.model.num_classes}, but the data has {num_classes} classes; 0 takes "
            "as many as the data has."
        )
    return config


def _structure(config, architecture):
    config = config.copy_and_resolve_references()
    config.model.block, config.model.head = str(architecture.block), str(architecture.head)
    config.model.place, config.seed = "", 0
    config.data.subset_seed = min(config.data.subset_seed, 0)
    if config.model.noise.scale_at == "train":
        # Otherwise the amount also acts in test mode, where it is no argument.
        config.model.noise.rate = config.model.noise.beta = 0.0
    config.optimizer.learning_rate = float(config.optimizer.learning_rate > 0)
    return config.to_json(sort_keys=True)


def abstract_state(plan: Plan, dataset: data.Dataset) -> steps.TrainState:
    """The shapes of the run's state, without computing it; refuses orders that do not fit the images."""
    create = functools.partial(steps.create_state, plan.model, plan.tx, plan.seed)
    return jax.eval_shape(lambda: create(dataset.train.image_shape))
