"""Datasets of tensorflow-datasets, read as array_record without TensorFlow."""

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dropbn import writers
from dropbn.data import files, records
from dropbn.errors import DropbnError, extra, shown, unknown

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Name -> the split to test on.
NAMES = {
    "digits": "test",  # ours
    "mnist": "test",
    "fashion_mnist": "test",
    "cifar10": "test",
    "cifar100": "test",
    "svhn_cropped": "test",
    "caltech101": "test",
    "oxford_iiit_pet": "test",
    "imagenet2012": "validation",
}
PHOTOS = ("caltech101", "oxford_iiit_pet", "imagenet2012")


def sources(name: str, directory: str = "") -> tuple[dict[str, records.Records], int]:
    """The examples of a prepared dataset; digits is prepared on first use.

    Args:
      name: one of `NAMES`.
      directory: where prepared data is; "" is tensorflow-datasets' default.

    Returns:
      ({"train", "test": examples {"image": uint8 (height, width, channels), "label"}}, number of classes).

    Raises:
      DropbnError: the dataset is not prepared, its files hold another number of examples than it says, or the
        directory cannot be read or written.
    """
    opened, _ = _open(name, directory)
    return opened, opened["train"].num_classes


def arrays(name: str, directory: str = "") -> tuple[dict[str, files.Arrays], int]:
    """`sources` of images with one size, decoded.

    To decode ten thousand images takes more than a second, so the arrays are kept in decoded.npz beside the
    prepared data, if that can be written, with a digest of both. A file that is damaged, or not what was
    decoded from these records, is replaced.
    """
    opened, builder = _open(name, directory)
    path = os.path.join(builder.data_dir, "decoded.npz")
    paths = [file for source in opened.values() for file in source.files]
    try:
        decoded, _ = files.from_npz(path)
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["digest"]) != _digest(paths, decoded):
                raise ValueError("these arrays were decoded from other records")
    except (DropbnError, KeyError, OSError, ValueError):
        decoded = {split: _decode(source) for split, source in opened.items()}
        _keep(path, decoded, _digest(paths, decoded))
    return decoded, opened["train"].num_classes


def _open(name, directory):
    """The examples of each split, and the builder of the prepared dataset."""
    try:
        prepared = prepare(name, directory) if name == "digits" else _builder(name, directory)
        if not prepared.is_prepared():
            at = f" {directory}" if directory else ""
            raise DropbnError(
                f"Dataset {name!r} is not prepared in {prepared.data_dir}. Prepare it once, with TensorFlow "
                "(reading it needs none):\n"
                f"  pip install tensorflow-cpu && python -m dropbn prepare {name}{at}"
            )
        opened = {
            ours: records.of_split(prepared, theirs)
            for ours, theirs in (("train", "train"), ("test", NAMES[name]))
        }
    except DropbnError:
        raise
    except Exception as error:  # tensorflow-datasets and array_record raise many kinds for edited files.
        where = directory or "the default data directory"
        raise DropbnError(
            f"Cannot prepare or read dataset {name!r} in {shown(where)}: {records.first_line(error)}."
        ) from error
    return opened, prepared


def _decode(source):
    return files.Arrays(*files.stacked(source.take(range(len(source)))))


def _digest(paths, decoded):
    """A digest of the files of records and of the arrays that were decoded from them."""
    found = hashlib.blake2b(digest_size=16)
    for file in paths:
        with open(file, "rb") as opened:
            found.update(hashlib.file_digest(opened, "blake2b").digest())
    for split, arrays in decoded.items():
        found.update(f"{split} {arrays.take(slice(None)).fingerprint}".encode())
    return found.hexdigest()


def _keep(path, decoded, digest):
    """Writes the arrays for `files.from_npz`; another process finds the whole file or none."""
    kept: dict[str, Any] = {"digest": digest}
    for split, arrays in decoded.items():
        kept |= {f"{split}_images": arrays.images, f"{split}_labels": arrays.labels}
    with contextlib.suppress(DropbnError), writers.replacing(path) as file:
        np.savez(file, **kept)


def prepare(name: str, directory: str = "") -> "tfds.core.DatasetBuilder":
    """Downloads and prepares a dataset, unless that has been done; returns its tfds builder."""
    if name not in NAMES:
        raise unknown("dataset", name, NAMES)
    with extra("data"):
        import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = _builder(name, directory)
    try:
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
            builder.download_and_prepare()
    except OSError:
        builder = _builder(name, directory)
        if not builder.is_prepared():  # Else another process has just prepared it.
            raise
    return builder


def _builder(name, directory):
    with extra("data"):
        import tensorflow_datasets as tfds

    where = {"data_dir": os.path.expanduser(directory) or None, "file_format": "array_record"}
    if name != "digits":
        return tfds.builder(name, **where)
    from dropbn.data.digits import Digits

    return Digits(**where)
