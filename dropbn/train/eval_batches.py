"""The batches that a run is measured on: plain images, or training images augmented as in training."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from dropbn import data
from dropbn.data import sampling
from dropbn.data.splits import Split
from dropbn.data.streams import Stream


def plain(config: ConfigDict, dataset: data.Dataset, split: str) -> sampling.PlainBatches:
    """Images without augmentation in a fixed random order, in batches of `images_of_a_statistic`.

    The order is random because a batch of one class has different statistics from a training batch.

    Args:
      config: the run's.
      dataset: its data.
      split: "train" for `config.eval.train_examples` training images, or "test".
    """
    images = dataset.plain(config.eval.train_examples) if split == "train" else dataset.test
    order = np.asarray(sampling.epoch_order(config.seed, 0, images.num_examples))
    size = images_of_a_statistic(config)
    return sampling.PlainBatches(images, size, dataset.mean, dataset.std, order)


@dataclasses.dataclass(frozen=True)
class AsInTraining:
    """Training images as the first epoch augments them, the same in every pass.

    They are the images of `plain(config, dataset, "train")` in the same order, so the two differ only by the
    augmentation. Without augmentation they are equal.

    Attributes:
      config: the run's.
      dataset: its data.
      batch_size: images in each batch; 0 means `config.batch_size`.
      whole: take all images of the epoch instead, in training's order and without a short last batch.
    """

    config: ConfigDict
    dataset: data.Dataset
    batch_size: int = 0
    whole: bool = False

    @property
    def is_augmented(self) -> bool:
        """Whether training augments its images."""
        given = self.config.data
        return isinstance(self.dataset.train, Stream) or bool(given.crop_padding or given.flip)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        train, size = self.dataset.train, self.batch_size or self.config.batch_size
        mean, std = self.dataset.mean, self.dataset.std
        order = np.asarray(sampling.epoch_order(self.config.seed, 0, train.num_examples))
        positions = self._positions(order, size)
        if not self.is_augmented:
            yield from sampling.PlainBatches(train, size, mean, std, order[positions])
            return
        # A short last batch is augmented at full length, which saves a compilation, and then cut.
        number = len(positions)
        full = np.resize(positions, -(-number // size) * size)
        for start, batch in zip(range(0, number, size), self._augmented(order, full, size), strict=True):
            part = batch.take(slice(number - start))
            yield {"image": sampling.normalize(part.images, mean, std), "label": part.labels}

    def _positions(self, order, size):
        """The wanted images' positions in the epoch's order."""
        if self.whole:
            return np.arange(len(order) // size * size)
        rows = data.evenly(self.config.eval.train_examples, len(order))
        shuffled = rows[np.asarray(sampling.epoch_order(self.config.seed, 0, len(rows)))]
        return np.argsort(order)[shuffled]

    def _augmented(self, order, positions, size):
        """Batches of uint8 images; an image's augmentation depends on its position."""
        config, train = self.config, self.dataset.train
        if isinstance(train, Stream):
            workers = config.data.workers
            yield from train.epoch(order, positions, size, seed=config.seed, epoch=0, workers=workers)
            return
        for of_batch in positions.reshape(-1, size):
            images, labels = train.take(order[of_batch])
            given = config.seed, config.data.crop_padding, config.data.flip
            yield Split(np.asarray(_augment(images, of_batch, *given)), labels)


def augmented_epoch(config: ConfigDict, dataset: data.Dataset) -> AsInTraining:
    """The first epoch of training, in batches of `images_of_a_statistic`, as the papers' recipes use it."""
    return AsInTraining(config, dataset, images_of_a_statistic(config), whole=True)


def images_of_a_statistic(config: ConfigDict) -> int:
    """How many images a BN statistic of training covers."""
    return config.model.bn.group_size or config.batch_size


@functools.partial(jax.jit, static_argnames=("crop_padding", "flip"))
def _augment(images, positions, seed, crop_padding, flip):
    return sampling.augment_at(images, seed, 0, positions, crop_padding, flip)
