"""A split of a dataset in memory."""

import hashlib
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images uint8 (examples, height, width, channels) and labels int32 (examples,)."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    @property
    def fingerprint(self) -> str:
        """Number and shape of the images, and a digest of them and their labels."""
        found = hashlib.blake2b(np.ascontiguousarray(self.images).data, digest_size=8)
        found.update(np.ascontiguousarray(self.labels, np.int32).data)
        shape = "x".join(map(str, self.image_shape))
        return f"{self.num_examples} images {shape}, digest {found.hexdigest()}"

    def take(self, rows: slice | np.ndarray) -> "Split":
        """The examples of some rows (a slice or an array)."""
        return Split(self.images[rows], self.labels[rows])
