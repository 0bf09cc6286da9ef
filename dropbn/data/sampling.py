"""Batches taken from a dataset on the device, and their augmentation there.

A random key follows from the epoch and an example's position in the epoch's global order, so that order and
augmentation are the same on any number of devices.
"""

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropbn import keys
from dropbn.data.splits import Split
from dropbn.data.streams import Stream

Images = TypeVar("Images", jax.Array, np.ndarray)


def epoch_order(seed: int | jax.Array, epoch: int | jax.Array, num_examples: int) -> jax.Array:
    """The order of the training examples in an epoch: a permutation of range(num_examples)."""
    return jax.random.permutation(keys.key(seed, "shuffle", epoch), num_examples)


def train_batch(
    split: Split,
    order: jax.Array,
    step: int | jax.Array,
    seed: int | jax.Array,
    *,
    mean: np.ndarray,
    std: np.ndarray,
    batch_size: int,
    crop_padding: int = 0,
    flip: bool = False,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """This device's share of the batch of a training step.

    Args:
      split: the training split, on the device.
      order: `epoch_order` of the epoch that `step` belongs to.
      step: 0-based step since the start of training.
      seed: the run's seed.
      mean, std: of the channels, in units of 0 to 1.
      batch_size: images a step over all devices.
      crop_padding, flip: see `augment`.
      axis_name: the device axis; None on one device.

    Returns:
      {"image": float32 (batch_size / devices, height, width, channels), "label": int32}.
    """
    epoch, step_in_epoch = jnp.divmod(step, len(order) // batch_size)
    position = _positions(step_in_epoch, batch_size, axis_name)
    examples = order[position]
    images = split.images[examples]
    if crop_padding or flip:
        images = augment_at(images, seed, epoch, position, crop_padding, flip)
    return {"image": normalize(images, mean, std), "label": split.labels[examples]}


def augment_at(
    images: jax.Array,
    seed: int | jax.Array,
    epoch: int | jax.Array,
    positions: jax.Array,
    crop_padding: int,
    flip: bool,
) -> jax.Array:
    """`augment` for the images at some positions of an epoch's order."""
    of_example = jax.vmap(lambda position: keys.key(seed, "augment", epoch, position))(positions)
    return augment(images, of_example, crop_padding, flip)


def augment(images: jax.Array, of_example: jax.Array, crop_padding: int, flip: bool) -> jax.Array:
    """Pads uint8 images with `crop_padding` zeros, crops at random, and flips half of them sideways.

    Args:
      images: (batch, height, width, channels).
      of_example: a random key for each image.
      crop_padding: pixels of zeros on each side.
      flip: whether to flip.
    """
    pad = crop_padding
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def one(image, key):
        crop_key, flip_key = jax.random.split(key)
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
        crop = lax.dynamic_slice(image, (top, left, 0), images.shape[1:])
        return jnp.where(flip & jax.random.bernoulli(flip_key), crop[:, ::-1], crop)

    return jax.vmap(one)(padded, of_example)


def normalize(images: Images, mean: np.ndarray, std: np.ndarray) -> Images:
    """uint8 images as float32, (x / 255 - mean) / std per channel."""
    return (images.astype(np.float32) / 255 - mean) / std


def eval_batch(
    split: Split,
    index: int | jax.Array,
    *,
    mean: np.ndarray,
    std: np.ndarray,
    batch_size: int,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """This device's share of the `index`-th batch in the split's own order, padded at the end.

    Returns:
      {"image", "label", "mask"}. The padding repeats the last image, and its mask is False, so that every
      image counts exactly once.
    """
    position = _positions(index, batch_size, axis_name)
    last = split.labels.shape[0] - 1
    examples = jnp.minimum(position, last)
    return {
        "image": normalize(split.images[examples], mean, std),
        "label": split.labels[examples],
        "mask": position <= last,
    }


@dataclasses.dataclass(frozen=True)
class PlainBatches:
    """All images of a split, on the host. Each iteration starts anew; the last batch may be shorter.

    Attributes:
      split: the split.
      batch_size: images in each batch.
      mean, std: of the channels, in units of 0 to 1.
      order: a permutation of the split's examples; None is the split's own order.
    """

    split: Split | Stream
    batch_size: int
    mean: np.ndarray
    std: np.ndarray
    order: np.ndarray | None = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        order = np.arange(self.split.num_examples) if self.order is None else np.asarray(self.order)
        for start in range(0, len(order), self.batch_size):
            part = self.split.take(order[start : start + self.batch_size])
            yield {"image": normalize(part.images, self.mean, self.std), "label": part.labels}


def _positions(index, batch_size, axis_name):
    """Positions of this device's share of the `index`-th batch, in the global order."""
    devices, rank = (lax.axis_size(axis_name), lax.axis_index(axis_name)) if axis_name else (1, 0)
    share = batch_size // devices
    return index * batch_size + rank * share + jnp.arange(share)
