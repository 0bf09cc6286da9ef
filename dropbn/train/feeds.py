"""How a dataset reaches the devices: from their own memory, or read ahead by the host.

A feed runs on the host and yields what a program takes, stacked over the devices. Inside the program, its
`batcher` makes this device's batch of that. Both feeds have the same methods, and so have both batchers.
"""

import collections
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dropbn import data
from dropbn.data import sampling
from dropbn.data.splits import Split
from dropbn.data.streams import Stream
from dropbn.errors import DropbnError
from dropbn.train import parallel
from dropbn.train.plan import Plan


def create(plans: Sequence[Plan], datasets: Sequence[data.Dataset]) -> "Resident | Streamed":
    """The feed of runs that train together.

    Args:
      plans: theirs; the first one's layout has one device for each run, or all devices share a single run.
      datasets: their data, of the same shapes.

    Raises:
      DropbnError: streamed images for runs side by side.
    """
    first = datasets[0]
    if isinstance(first.train, Split):
        return Resident(plans, datasets)
    if not plans[0].layout.axis_name:
        raise DropbnError("Streamed images feed one run at a time: train with --parallel=data.")
    return Streamed(plans[0], first.train, first.mean, first.std)


class Gather(NamedTuple):
    """Makes batches of images that live on the device; see `dropbn.data.sampling`."""

    batch_size: int
    axis_name: str | None
    crop_padding: int
    flip: bool

    def train_batch(self, inputs: tuple, step: jax.Array, seed: jax.Array) -> dict[str, jax.Array]:
        """The batch {"image", "label"} of a step since the start of training."""
        (split, moments), order = inputs
        augmented: dict = {"crop_padding": self.crop_padding, "flip": self.flip}
        return sampling.train_batch(split, order, step, seed, **moments, **self._shared(), **augmented)

    def eval_batch(self, inputs: tuple) -> dict[str, jax.Array]:
        """The batch {"image", "label", "mask"}."""
        (split, moments), index = inputs
        return sampling.eval_batch(split, index, **moments, **self._shared())

    def _shared(self):
        return {"batch_size": self.batch_size, "axis_name": self.axis_name}


class Receive(NamedTuple):
    """Makes batches of what the host has sent."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def train_batch(
        self, inputs: dict[str, jax.Array], step: jax.Array, seed: jax.Array
    ) -> dict[str, jax.Array]:
        """The batch {"image", "label"}; the host has already used its step and seed."""
        return self.eval_batch(inputs)

    def eval_batch(self, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch {"image", "label", "mask"}; the mask is False for the padding."""
        mean, std = (np.array(moment, np.float32) for moment in self)
        return inputs | {"image": sampling.normalize(inputs["image"], mean, std)}


class Resident:
    """Images live on every device; batches are gathered and augmented there.

    Attributes:
      batcher: makes a batch inside a program: `train_batch(inputs, step, seed)` or `eval_batch(inputs)`. It
        holds no images, so that a program may outlive its feed.
    """

    def __init__(self, plans: Sequence[Plan], datasets: Sequence[data.Dataset]) -> None:
        plan, layout = plans[0], plans[0].layout
        self._batch_size, self._layout = plan.batch_size, layout
        self.batcher = Gather(plan.batch_size, layout.axis_name, plan.crop_padding, plan.flip)
        self._moments = [{"mean": dataset.mean, "std": dataset.std} for dataset in datasets]
        self._train = self._put([dataset.train for dataset in datasets])
        # ids of splits -> (the splits, their copies on the devices)
        self._measured: dict[tuple[int, ...], tuple] = {}
        self._seeds = layout.put([plan.seed for plan in plans])
        self._order = _epoch_orders(datasets[0].train.num_examples, layout)

    def _put(self, splits):
        return self._layout.put(list(zip(splits, self._moments, strict=True)))

    def train_inputs(self, epoch: int, steps: range) -> Iterator:
        """What `batcher.train_batch` takes at each of the given steps of an epoch."""
        return itertools.repeat((self._train, self._order(self._seeds, epoch)), len(steps))

    def eval_inputs(self, *splits: Split) -> Iterator:
        """What `batcher.eval_batch` takes, until every image of the runs' splits has been there once."""
        key = tuple(map(id, splits))
        if key not in self._measured:
            self._measured[key] = splits, self._put(splits)
        _, on_devices = self._measured[key]
        for i in range(math.ceil(splits[0].num_examples / self._batch_size)):
            yield on_devices, np.full(len(self._layout.devices), i)


@functools.lru_cache(maxsize=4)
def _epoch_orders(num_examples, layout):
    """(seeds, epoch) -> each device's order of that epoch."""
    return parallel.on_each(
        lambda seed, epoch: sampling.epoch_order(seed, epoch, num_examples), layout, in_axes=(0, None)
    )


class Streamed:
    """Batches are read by the host, a few ahead of the devices.

    Attributes:
      batcher: as in `Resident`.
    """

    def __init__(self, plan: Plan, train: Stream, mean: np.ndarray, std: np.ndarray) -> None:
        self._plan, self._layout, self._train = plan, plan.layout, train
        self.batcher = Receive(tuple(mean.tolist()), tuple(std.tolist()))

    def train_inputs(self, epoch: int, steps: range) -> Iterator:
        """What `batcher.train_batch` takes at each of the given steps of an epoch."""
        size, seed = self._plan.batch_size, self._plan.seed
        order = np.asarray(sampling.epoch_order(seed, epoch, self._train.num_examples))
        positions = np.concatenate([self._my_positions(step * size) for step in steps] or [np.arange(0)])
        batches = self._train.epoch(
            order, positions, self._share, seed=seed, epoch=epoch, workers=self._plan.workers
        )
        return self._prefetch_to_device({"image": batch.images, "label": batch.labels} for batch in batches)

    def eval_inputs(self, split: Stream) -> Iterator:
        """What `batcher.eval_batch` takes, until every image of a split has been there once."""
        return self._prefetch_to_device(self._padded_batches(split))

    def _padded_batches(self, split):
        for start in range(0, split.num_examples, self._plan.batch_size):
            positions = self._my_positions(start)
            part = split.take(np.minimum(positions, split.num_examples - 1))
            yield {"image": part.images, "label": part.labels, "mask": positions < split.num_examples}

    @property
    def _share(self):
        """How many images of a batch are this process's."""
        return self._plan.batch_size // self._layout.processes

    def _my_positions(self, start):
        """This process's positions in the batch that begins at `start`."""
        process = jax.process_index() if self._layout.processes > 1 else 0
        first = start + process * self._share
        return np.arange(first, first + self._share)

    def _prefetch_to_device(self, batches, number=2):
        """Puts batches on the devices while earlier ones are in use."""
        waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
        for batch in batches:
            waiting.append(parallel.shard(batch, self._layout.devices))
            if len(waiting) > number:
                yield waiting.popleft()
        yield from waiting
