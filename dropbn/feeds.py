"""How a dataset reaches the devices: from their own memory, or read ahead by the host.

Both feeds have the same methods. `*_inputs` run on the host and yield what a program takes, stacked over the
devices; `*_batch` run inside the program and make this device's batch of it.
"""

import collections
import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from dropbn import data, parallel
from dropbn.data import sampling
from dropbn.data.splits import Split
from dropbn.errors import DropbnError


def create(
    config, dataset: data.Dataset, layout: parallel.Layout, seeds: Sequence[int] = ()
) -> "Resident | Streamed":
    """The feed of a config's dataset.

    Args:
      config: the config.
      dataset: its data.
      layout: the devices.
      seeds: of the runs where each device has its own; by default the config's.

    Raises:
      DropbnError: a stream for runs side by side.
    """
    if isinstance(dataset.train, Split):
        return Resident(config, dataset, layout, seeds or [config.seed])
    if not layout.axis_name:
        raise DropbnError("Streamed images feed one run at a time: train with --parallel=data.")
    return Streamed(config, dataset, layout)


class Resident:
    """Images live on every device; batches are gathered and augmented there."""

    def __init__(self, config, dataset, layout, seeds):
        self._config, self._devices = config, layout.devices
        self._statics = {
            "batch_size": config.batch_size,
            "axis_name": layout.axis_name,
            "mean": dataset.mean,
            "std": dataset.std,
        }
        self._train = parallel.replicate(dataset.train, layout.devices)
        self._measured = {}  # id of a split -> (the split, its copy on the devices)
        num_examples = dataset.train.num_examples
        self._seeds = layout.put(list(seeds))
        self._order = parallel.on_each(
            lambda seed, epoch: sampling.epoch_order(seed, epoch, num_examples), layout, in_axes=(0, None)
        )

    def train_inputs(self, epoch: int, steps: range) -> Iterator:
        """What `train_batch` takes at each of some steps of an epoch."""
        return itertools.repeat((self._train, self._order(self._seeds, epoch)), len(steps))

    def train_batch(self, inputs, step, seed) -> dict[str, jax.Array]:
        """The batch {"image", "label"} of a step since the start of training."""
        config = self._config.data
        augmented = {"crop_padding": config.crop_padding, "flip": config.flip}
        return sampling.train_batch(*inputs, step, seed, **self._statics, **augmented)

    def eval_inputs(self, split: Split) -> Iterator:
        """What `eval_batch` takes, until every image of a split was there once."""
        if id(split) not in self._measured:
            self._measured[id(split)] = split, parallel.replicate(split, self._devices)
        _, on_devices = self._measured[id(split)]
        for i in range(math.ceil(split.num_examples / self._config.batch_size)):
            yield on_devices, np.full(len(self._devices), i)

    def eval_batch(self, inputs) -> dict[str, jax.Array]:
        """The batch {"image", "label", "mask"}; see `sampling.eval_batch`."""
        return sampling.eval_batch(*inputs, **self._statics)


class Streamed:
    """Batches are read by the host, a few ahead of the devices."""

    def __init__(self, config, dataset, layout):
        self._config, self._layout = config, layout
        self._train, self._mean, self._std = dataset.train, dataset.mean, dataset.std

    def train_inputs(self, epoch: int, steps: range) -> Iterator:
        """What `train_batch` takes at each of some steps of an epoch."""
        size, seed = self._config.batch_size, self._config.seed
        order = np.asarray(sampling.epoch_order(seed, epoch, self._train.num_examples))
        positions = np.concatenate([self._own(step * size) for step in steps] or [np.arange(0)])
        batches = self._train.epoch(
            order, positions, self._share, seed=seed, epoch=epoch, workers=self._config.data.workers
        )
        return self._ahead({"image": batch.images, "label": batch.labels} for batch in batches)

    def train_batch(self, inputs, step, seed) -> dict[str, jax.Array]:
        """The batch {"image", "label"}; its step and seed were the host's."""
        return inputs | {"image": sampling.normalize(inputs["image"], self._mean, self._std)}

    def eval_inputs(self, split) -> Iterator:
        """What `eval_batch` takes, until every image of a split was there once."""
        return self._ahead(self._padded(split))

    def eval_batch(self, inputs) -> dict[str, jax.Array]:
        """The batch {"image", "label", "mask"}; the mask is False for the padding."""
        return self.train_batch(inputs, None, None)

    def _padded(self, split):
        for start in range(0, split.num_examples, self._config.batch_size):
            positions = self._own(start)
            part = split.take(np.minimum(positions, split.num_examples - 1))
            yield {"image": part.images, "label": part.labels, "mask": positions < split.num_examples}

    @property
    def _share(self):
        """This process's number of images in a batch."""
        return self._config.batch_size // self._layout.processes

    def _own(self, start):
        """The positions that are this process's in the batch that begins at `start`."""
        first = start + jax.process_index() * self._share
        return np.arange(first, first + self._share)

    def _ahead(self, batches, number=2):
        """Puts batches on the devices while the one before is in use."""
        waiting = collections.deque()
        for batch in batches:
            waiting.append(parallel.spread(batch, self._layout.devices))
            if len(waiting) > number:
                yield waiting.popleft()
        yield from waiting
