"""A split of a dataset in memory."""

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

    def take(self, rows) -> "Split":
        """The examples of some rows (a slice or an array)."""
        return Split(self.images[rows], self.labels[rows])
