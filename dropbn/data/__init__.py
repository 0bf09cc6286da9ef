"""Datasets by name, as arrays in memory."""

import contextlib
import dataclasses
import functools
import os
from typing import NamedTuple

import numpy as np

from dropbn.data import files
from dropbn.errors import DropbnError, unknown


class Split(NamedTuple):
    """Images uint8 (examples, height, width, channels) and labels int32 (examples,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset in memory.

    Attributes:
      train: training split.
      test: test split.
      num_classes: labels lie in [0, num_classes).
      mean: mean of the training images' channels, in units of 0 to 1, shape (channels,).
      std: standard deviation likewise.
    """

    train: Split
    test: Split
    num_classes: int
    mean: np.ndarray
    std: np.ndarray

    def plain(self, number: int) -> Split:
        """`number` training images (0: all) at equal distances, to be looked at without augmentation.

        Not the first ones: a folder's images lie class by class.
        """
        total = len(self.train.labels)
        number = min(number or total, total)
        rows = np.arange(number) * total // number
        return Split(*(part[rows] for part in self.train))


def load(config) -> Dataset:
    """The dataset of `config.data`.

    `name` is "digits", prepared on first use with tensorflow-datasets (no TensorFlow); one of `STOCK`, which
    tensorflow-datasets prepared before; or "folder:PATH" or "npz:PATH", one's own images (see
    `dropbn.data.files`).

    Raises:
      DropbnError: an unknown name, a stock dataset that is not prepared, a place that cannot be read or
        written.
    """
    kind, colon, path = config.name.partition(":")
    if colon and kind in FILES:
        return FILES[kind](path)
    if config.name not in ("digits", *STOCK):
        raise unknown("dataset", config.name, ["digits", *STOCK, *(f"{kind}:PATH" for kind in FILES)])
    data_dir = os.path.expanduser(config.dir) or None
    try:
        return _digits(data_dir) if config.name == "digits" else _stock(config.name, data_dir)
    except OSError as error:
        where = config.dir or "the default data directory"
        raise DropbnError(f"Cannot prepare or read dataset {config.name!r} in {where}: {error}.") from error


def _digits(data_dir):
    import tensorflow_datasets as tfds

    from dropbn.data.digits import Digits

    tfds.disable_progress_bar()
    open_builder = functools.partial(Digits, data_dir=data_dir, file_format="array_record")
    builder = open_builder()
    try:
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
            builder.download_and_prepare()
    except OSError:
        builder = open_builder()
        if not builder.is_prepared():  # Else another process has just prepared it.
            raise
    return _from_builder(builder)


def _stock(name, data_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.is_prepared():
        where = "" if data_dir is None else f"data_dir={data_dir!r}, "
        raise DropbnError(
            f"Dataset {name!r} is not prepared in {builder.data_dir}. Prepare it once, with TensorFlow "
            "(reading it needs none):\n"
            '  pip install tensorflow-cpu && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', {where}file_format='array_record').download_and_prepare()\""
        )
    return _from_builder(builder)


def _folder(path):
    splits, classes = files.from_folder(path)
    return _dataset(splits, len(classes))


def _npz(path):
    return _dataset(*files.from_npz(path))


# Stock datasets of small images; preparing them needs TensorFlow, reading them does not.
STOCK = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")
FILES = {"folder": _folder, "npz": _npz}


def _from_builder(builder):
    splits = {}
    for name in ("train", "test"):
        source = builder.as_data_source(split=name)
        examples = source.__getitems__(range(len(source)))
        images = np.stack([example["image"] for example in examples])
        splits[name] = images, np.array([example["label"] for example in examples], np.int32)
    return _dataset(splits, builder.info.features["label"].num_classes)


def _dataset(splits, num_classes):
    train, test = (
        Split(images, labels.astype(np.int32)) for images, labels in (splits["train"], splits["test"])
    )
    # Moments of the bytes, in float64 channel by channel, so that no float copy of all images is made.
    channels = [
        np.bincount(train.images[..., c].ravel(), minlength=256) for c in range(train.images.shape[-1])
    ]
    values = np.arange(256) / 255
    mean = np.array([np.average(values, weights=counts) for counts in channels])
    square = np.array([np.average(values**2, weights=counts) for counts in channels])
    std = np.sqrt(np.maximum(square - mean**2, 0))
    if not std.all():
        raise DropbnError("A channel of the training images is constant: there is nothing to learn from it.")
    return Dataset(train, test, num_classes, mean.astype(np.float32), std.astype(np.float32))
