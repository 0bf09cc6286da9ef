"""The batches that a run is measured on: its images plain, shuffled, or as training saw them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from dropbn import data, feeds, parallel
from dropbn.data import sampling
from dropbn.data.splits import Split


def plain(config, dataset: data.Dataset, split: str) -> sampling.PlainBatches:
    """Images as they are, in their order, `config.batch_size` at once.

    Args:
      config: of the run.
      dataset: its data.
      split: "train", of which there are `config.eval.train_examples`, or "test".
    """
    images = dataset.plain(config.eval.train_examples) if split == "train" else dataset.test
    return sampling.PlainBatches(images, config.batch_size, dataset.mean, dataset.std)


def shuffled(config, dataset: data.Dataset, split: str) -> sampling.PlainBatches:
    """The same in a fixed random order, as many at once as a statistic of training covers.

    Where BN uses the batch, it must not be of one class.
    """
    batches = plain(config, dataset, split)
    order = np.asarray(sampling.epoch_order(config.seed, 0, batches.split.num_examples))
    return dataclasses.replace(batches, batch_size=_group(config), order=order)


@dataclasses.dataclass(frozen=True)
class AsInTraining:
    """Training images as training sees them, from the beginning each time; `eval.train_examples` of them.

    Where training does not augment them they are the plain ones.
    """

    config: ConfigDict
    dataset: data.Dataset

    def __iter__(self):
        given = self.config.data
        if isinstance(self.dataset.train, Split) and not (given.crop_padding or given.flip):
            return iter(plain(self.config, self.dataset, "train"))
        number = self.config.eval.train_examples or self.dataset.train.num_examples
        return itertools.islice(augmented_epoch(self.config, self.dataset), -(-number // _group(self.config)))


def augmented_epoch(config, dataset: data.Dataset) -> Iterator[dict[str, jax.Array]]:
    """The first epoch of training, on one device, as many images at once as a statistic covers."""
    config = config.copy_and_resolve_references()
    config.batch_size = _group(config)
    layout = parallel.Layout(tuple(jax.local_devices()[:1]))
    feed = feeds.create(config, dataset, layout)
    batch = _augmenting(feed.batches, layout)
    for step, inputs in enumerate(
        feed.train_inputs(0, range(dataset.train.num_examples // config.batch_size))
    ):
        yield jax.tree.map(lambda leaf: leaf[0], batch(inputs, step, config.seed))


def _group(config):
    """How many images a BN statistic of training covers."""
    return config.model.bn.group_size or config.batch_size


@functools.lru_cache(maxsize=4)
def _augmenting(batches, layout):
    return parallel.on_each(batches.train, layout, in_axes=(0, None, None))
