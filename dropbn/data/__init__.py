"""Datasets by name: small images as arrays in memory, photographs as streams."""

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from dropbn.data import files, stock
from dropbn.data.photos import View
from dropbn.data.splits import Split
from dropbn.data.streams import Stream
from dropbn.errors import DropbnError, unknown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The channels' mean and deviation of ImageNet's training images, by which studies on photographs normalize.
PHOTO_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
PHOTO_STD = np.array([0.229, 0.224, 0.225], np.float32)
_LARGEST_SIDE = 10**5  # in pixels


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset.

    Attributes:
      train: training split.
      test: test split.
      num_classes: labels lie in [0, num_classes).
      mean: mean of the training images' channels, in units of 0 to 1, shape (channels,); ImageNet's for
        streams.
      std: their standard deviation, likewise.
      validation: the split that chooses the best checkpoint; None leaves that to the test split.
    """

    train: Split | Stream
    test: Split | Stream
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    validation: Split | Stream | None = None

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """What a resumed run compares to know that its data is the same, split by split."""
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: split.fingerprint for name, split in splits.items() if split is not None}

    def plain(self, number: int) -> Split:
        """`number` training images (0: all), in memory and without augmentation.

        They are at equal distances, because a folder's images lie class by class.
        """
        return self.train.take(evenly(number, self.train.num_examples))


def load(config: "ConfigDict") -> Dataset:
    """The dataset of `config.data`.

    `name` is one of `stock.NAMES`, or "folder:PATH" or "npz:PATH" for your own images (see
    `dropbn.data.files`). Prepare a stock dataset with `dropbn prepare` first; "digits" is prepared on first
    use. With `image_size` the splits are streams (see `dropbn.data.photos`). Without it they are arrays in
    memory, and the images keep their size.

    Raises:
      DropbnError: the name is unknown, a stock dataset is not prepared, a path cannot be read or written, or
        a `split`, a size or an augmentation does not fit.
    """
    for field, most in (
        ("image_size", _LARGEST_SIDE),
        ("resize", _LARGEST_SIDE),
        ("part_size", _LARGEST_SIDE),
        ("train_examples", 2**31 - 1),
    ):
        if not 0 <= config[field] <= most:
            raise DropbnError(f"data.{field}={config[field]}: give 0 to {most}.")
    if not -1 <= config.subset_seed < 2**31:
        raise DropbnError(f"data.subset_seed={config.subset_seed}: give -1 (evenly spread) or a seed from 0.")
    kind, colon, path = config.name.partition(":")
    is_own = colon and kind in files.OPENERS
    if not is_own and config.name not in stock.NAMES:
        raise unknown("dataset", config.name, [*stock.NAMES, *(f"{kind}:PATH" for kind in files.OPENERS)])
    if not config.image_size:
        _refuse_streams(config)
    of_stock = stock.sources if config.image_size else stock.arrays
    sources, num_classes = files.OPENERS[kind](path) if is_own else of_stock(config.name, config.dir)
    if not config.image_size:
        return _in_memory(config, sources, num_classes)
    if config.crop_padding:
        raise DropbnError(
            f"data.crop_padding={config.crop_padding} is for images in memory: with data.image_size, "
            "data.resize and data.crop_scale say how they are cropped."
        )
    for field, side in (("resize", config.resize), ("part_size", config.part_size or config.image_size)):
        if side < config.image_size:
            raise DropbnError(f"data.{field}={side} is less than data.image_size={config.image_size}.")
    scale = tuple(config.crop_scale)
    if scale and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
        raise DropbnError(
            f"data.crop_scale={scale}: give the least and largest share of the area, such as (0.08, 1.0)."
        )
    view = View(
        config.image_size,
        config.resize,
        config.part_size,
        scale,
        config.rotation,
        config.jitter,
        config.flip,
    )
    splits = {name: Stream(source, rows, view) for name, (source, rows) in _splits(config, sources).items()}
    return Dataset(num_classes=num_classes, mean=PHOTO_MEAN, std=PHOTO_STD, **splits)


def evenly(number: int, total: int) -> np.ndarray:
    """Rows: `number` of `total` (0: all), at equal distances."""
    number = min(number or total, total)
    return np.arange(number) * total // number


def _splits(config, sources):
    """(source, rows) of train, test and, with `config.split`, validation."""
    splits = _divided(config, sources)
    source, rows = splits["train"]
    return splits | {"train": (source, rows[_chosen(config, len(rows))])}


def _chosen(config, total):
    """The rows of the training images that a config takes: at equal distances, or drawn by `subset_seed`."""
    if config.subset_seed < 0:
        return evenly(config.train_examples, total)
    drawn = np.random.default_rng(config.subset_seed).permutation(total)
    return np.sort(drawn[: config.train_examples or total])


def _divided(config, sources):
    if not config.split:
        return {name: (source, np.arange(len(source))) for name, source in sources.items()}
    shares = [int(part) if part.isdecimal() and len(part) < 7 else -1 for part in config.split.split(":")]
    if len(shares) != 3 or min(shares) < 0 or not (shares[0] and shares[2]):
        raise DropbnError(
            f"data.split={config.split!r}: give train:validation:test, such as 70:15:15 or 80:0:20, or ''."
        )
    together = files.Joined(tuple(sources.values()))
    # All seeds share one division; they differ in the order and the initial weights.
    rows = np.random.default_rng(0).permutation(len(together))
    parts = np.split(rows, np.cumsum(shares)[:2] * len(rows) // sum(shares))
    named = zip(("train", "validation", "test"), shares, parts, strict=True)
    divided = {name: part for name, share, part in named if share}
    if not all(map(len, divided.values())):
        raise DropbnError(f"data.split={config.split!r} of {len(rows)} images leaves a part empty.")
    return {name: (together, part) for name, part in divided.items()}


def _refuse_streams(config):
    """Refuses what needs an image size, before anything is opened or decoded."""
    given = {
        field: config[field]
        for field in ("crop_scale", "part_size", "rotation", "jitter", "workers")
        if config[field]
    }
    if config.name in stock.PHOTOS or given:
        raise DropbnError(
            f"data.name={config.name!r} with {given or 'images of any size'} is a stream: give "
            "data.image_size, such as 224."
        )


def _in_memory(config, sources, num_classes):
    splits = {name: source.take(rows) for name, (source, rows) in _splits(config, sources).items()}
    # Moments from the counts of byte values, in float64, so that no float copy of all images is made.
    images = splits["train"].images
    channels = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    values = np.arange(256) / 255
    mean = np.array([np.average(values, weights=counts) for counts in channels])
    square = np.array([np.average(values**2, weights=counts) for counts in channels])
    std = np.sqrt(np.maximum(square - mean**2, 0))
    if not std.all():
        raise DropbnError("A channel of the training images is constant: there is nothing to learn from it.")
    return Dataset(
        num_classes=num_classes, mean=mean.astype(np.float32), std=std.astype(np.float32), **splits
    )
