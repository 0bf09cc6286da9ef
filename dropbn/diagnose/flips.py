"""Images that are right in train mode and wrong in test mode, as in Fig. 6 of Li et al. (2018)."""

import dataclasses
import os
from typing import TYPE_CHECKING

import jax
import numpy as np

from dropbn.diagnose.batches import Batches
from dropbn.diagnose.scores import Scores
from dropbn.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flips(Result):
    """The flipped images, the largest gain of loss first.

    Each row holds:
      image: its number in the order of the batches.
      loss_train_mode, loss_test_mode: its loss in both modes.

    Attributes:
      share: the fraction of the images that flip; None where the score does not tell which are right.
      responses: outputs of the first of them in train mode and in test mode, (images, 2, outputs).
      images: those images.
    """

    share: float | None
    responses: np.ndarray = dataclasses.field(repr=False)
    images: np.ndarray = dataclasses.field(repr=False)

    def plot(self, path: str | os.PathLike | None = None) -> "Figure":
        """The most flipped images, each with its responses in train mode and in test mode."""
        from dropbn import plots

        return plots.flips(self.images, self.responses, self.rows, path)


def find(scores: list[Scores], outputs: list[np.ndarray], batches: Batches, most: int) -> Flips:
    """The flipped images.

    Args:
      scores: those of train mode and of test mode.
      outputs: likewise, (images, outputs) each.
      batches: the images.
      most: for how many flipped images responses and images are kept.
    """
    train_mode, test_mode = scores
    numbers = _flipped(train_mode, test_mode)
    rows = [
        {
            "image": int(i),
            "loss_train_mode": float(train_mode.loss[i]),
            "loss_test_mode": float(test_mode.loss[i]),
        }
        for i in numbers
    ]
    return Flips(
        rows,
        "Right in train mode, wrong in test mode",
        share=None if train_mode.correct is None else len(rows) / len(train_mode.correct),
        responses=np.stack([of_mode[numbers[:most]] for of_mode in outputs], 1),
        images=_images(batches, numbers[:most]),
    )


def _flipped(train_mode, test_mode):
    """The numbers of the flipped images, the largest gain of loss first."""
    if train_mode.correct is None:
        return np.zeros(0, int)
    flipped = np.flatnonzero((train_mode.correct > 0.5) & (test_mode.correct <= 0.5))
    gain = test_mode.loss - train_mode.loss
    return flipped[np.argsort(-gain[flipped], kind="stable")]


def _images(batches, numbers):
    """The images of these numbers, counted in the order of the batches; of several inputs the first."""
    found: dict[int, np.ndarray] = {}
    start = 0
    for batch in batches:
        x = jax.tree.leaves(batches.inputs(batch))[0]
        found |= {i: np.asarray(x[i - start]) for i in numbers if start <= i < start + len(x)}
        start += len(x)
    return np.array([found[i] for i in numbers])
