"""The scores of images in a mode, and the difference between two modes with its standard error.

The squared error of a difference of means is the sum of two variances:

- The variance over images is var(d) / images for the differences d of the same images. For different images,
  the variances of both means add. With batch statistics, the images of a batch depend on each other, and only
  sums over batches are independent. Then the larger of two variances is taken, this one and, for B batches,
  B / (B - 1) sum_b (sum_{i in b} (d_i - mean d))^2 / images^2.
- The variance over statistics counts where statistics were taken from training images. They are also taken
  from P disjoint parts of the batches. A statistic's variance falls as 1 / images. So, to first order, the
  variance of the difference is that of the P differences times a part's share of the images (1 / P).

The degrees of freedom are Satterthwaite's (1946): (sum v)^2 / sum (v^2 / degrees of v).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, overload

import numpy as np

from dropbn.diagnose.batches import Batches
from dropbn.diagnose.call import fold_in
from dropbn.diagnose.interception import Mode
from dropbn.diagnose.model import Model
from dropbn.diagnose.predictor import Predictor
from dropbn.errors import DropbnError

_LEVEL = 0.05  # the chance of any false gain among the differences that are compared together
_PARTS = 4  # disjoint parts of the training batches, for the variance over statistics


class Scores(NamedTuple):
    """Scores of images, in float64.

    Attributes:
      loss: (images,).
      correct: (images,), or None if the score does not give it.
      batch: (images,), the index of each image's batch if BN uses batch statistics, otherwise None.
      parts: the scores with the statistics of each part of the training batches. It is () if there is only
        one batch, and None if the statistics were not taken from batches.
      share: the images of a part, as a fraction of those behind the statistics.
    """

    loss: np.ndarray
    correct: np.ndarray | None
    batch: np.ndarray | None = None
    parts: tuple["Scores", ...] | None = None
    share: float = 0.0

    def mean(self, key: str) -> float | None:
        """The mean of "loss" or "correct" over images."""
        values = getattr(self, key)
        return None if values is None else float(values.mean())


class Difference(NamedTuple):
    """A difference of means.

    Attributes:
      value: the difference.
      error: its standard error; None where it is not known, as for statistics from one batch.
      degrees: the degrees of freedom of the error.
    """

    value: float
    error: float | None
    degrees: float = np.inf

    def words(self, key: str) -> str:
        """For example "12.5 +- 1.7 points" for "correct" or "0.436 +- 0.052" for "loss".

        An unknown error is left out.
        """
        numbers = [number for number in (self.value, self.error) if number is not None]
        if key == "correct":
            return " +- ".join(f"{100 * number:.1f}" for number in numbers) + " points"
        return " +- ".join(f"{number:.3g}" for number in numbers)

    def least(self, tried: int) -> float | None:
        """value - t error, the lower end of a one-sided 95 % interval.

        t is the quantile of Student's distribution at 1 - 0.05 / tried (Bonferroni). So among `tried`
        differences that are truly 0, the chance that any lower end is above 0 is at most 5 %.

        Args:
          tried: how many differences are compared together.
        """
        if not self.error:
            return None if self.error is None else self.value
        from scipy import stats

        return self.value - float(stats.t.ppf(1 - _LEVEL / tried, self.degrees)) * self.error


@overload
def difference(before: Scores, after: Scores, key: Literal["loss"], *, paired: bool = True) -> Difference: ...
@overload
def difference(before: Scores, after: Scores, key: str, *, paired: bool = True) -> Difference | None: ...
def difference(before: Scores, after: Scores, key: str, *, paired: bool = True) -> Difference | None:
    """The mean of `after` minus that of `before`; None if the score does not give `key`.

    Args:
      before, after: the scores.
      key: "loss" or "correct".
      paired: whether both score the same images in the same order.
    """
    a, b = getattr(before, key), getattr(after, key)
    if a is None:
        return None
    if paired:
        terms = [_over_images(b - a, before.batch if after.batch is None else after.batch)]
    else:
        terms = [_over_images(a, before.batch), _over_images(b, after.batch)]
    terms += _over_parts(before, after, key)
    value = float(b.mean() - a.mean())
    if None in terms:
        return Difference(value, None)
    variance = sum(v for v, _ in terms)
    spread = sum(v**2 / degrees for v, degrees in terms)
    return Difference(value, float(variance**0.5), float(variance**2 / spread) if spread else np.inf)


def parts_of(train: Batches, rngs: dict) -> list[tuple[Batches, dict]]:
    """(batches, random keys by stream) of each part of the training batches."""
    # Parts with the same masks would hide what depends on the masks.
    return [(part, fold_in(rngs, i)) for i, part in enumerate(train.parts(_PARTS))]


def _over_images(values, batch):
    """(variance of the mean, degrees of freedom), or None where it is not known."""
    number = len(values)
    if number < 2:
        return None
    of_images = values.var(ddof=1) / number, number - 1
    if batch is None:
        return of_images
    sums = np.bincount(batch, values - values.mean())
    if len(sums) < 2:
        return None
    of_batches = np.square(sums).sum() * len(sums) / (len(sums) - 1) / number**2, len(sums) - 1
    return max(of_images, of_batches)


def _over_parts(before, after, key):
    """The same for statistics, in a list that is empty if none were taken from batches."""
    taken = [scores for scores in (before, after) if scores.parts is not None]
    if not taken:
        return []
    number = len(taken[0].parts)
    if number < 2:
        return [None]
    a, b = (
        scores.mean(key) if scores.parts is None else np.array([part.mean(key) for part in scores.parts])
        for scores in (before, after)
    )
    return [(np.var(b - a, ddof=1) * taken[0].share, number - 1)]


class Scorer:
    """Scores of the same images in any mode.

    Attributes:
      batches: the images.
    """

    def __init__(self, model: Model, batches: Batches, name: str, score: Callable) -> None:
        """The arguments are those of `gap.explain`; `name` stands for the batches in error messages."""
        self.batches, self._name, self._model, self._score = batches, name, model, score
        self._lengths: list[int] = []

    def __call__(self, variables: dict, mode: Mode) -> tuple[Scores, np.ndarray]:
        """The scores and the outputs of all images."""
        predict = Predictor(self._model, mode)
        scores, outputs = self._of(predict(variables, self.batches))
        self._lengths = [len(part) for part in outputs]
        if mode.batch_norm == "batch":
            scores = scores._replace(batch=np.repeat(np.arange(len(outputs)), self._lengths))
        return scores, np.concatenate(outputs)

    def of_outputs(self, outputs: np.ndarray) -> Scores:
        """The scores of given outputs of all images, for batches of which each has as many as in a call."""
        # Inputs need not have one row for each output: those of graphs have one for each node.
        parts = np.split(outputs, np.cumsum(self._lengths)[:-1])
        return self._of(zip(self.batches, parts, strict=True))[0]

    def _of(self, predictions):
        found, outputs = [], []
        for batch, output in predictions:
            if not np.all(np.isfinite(output)):
                raise DropbnError(
                    f"Outputs for the {self._name} batches are not finite: look for NaN in the batches or "
                    "in the weights."
                )
            found.append(self._score(output, batch))
            outputs.append(output)

        def joined(key):
            return np.concatenate([np.asarray(part[key], np.float64) for part in found])

        return Scores(joined("loss"), joined("correct") if "correct" in found[0] else None), outputs
