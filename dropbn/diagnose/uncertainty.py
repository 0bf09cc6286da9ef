"""Monte Carlo predictions: their mean, their disagreement, and their calibration."""

import dataclasses

import numpy as np

from dropbn.errors import DropbnError
from dropbn.results import Result


@dataclasses.dataclass(frozen=True)
class Sample(Result):
    """Monte Carlo predictions, a row for each image.

    Each row holds, with entropies in nats:
      image: its number.
      prediction: the class of the largest mean probability.
      probability, spread: mean and standard deviation of that class's probability over the draws.
      entropy: of the mean probabilities, H[E p].
      mutual_information: H[E p] - E H[p], how much the draws disagree.

    Attributes:
      mean, spread: of the probabilities over the draws, (images, classes).
    """

    mean: np.ndarray = dataclasses.field(default=None, repr=False)
    spread: np.ndarray = dataclasses.field(default=None, repr=False)

    def most_uncertain(self, number: int = 10) -> list[dict]:
        """The rows with the largest mutual information."""
        return sorted(self.rows, key=lambda row: -row["mutual_information"])[:number]

    def __rich__(self):
        shown = self.most_uncertain()
        return Result(
            shown, f"{self.title}: the {len(shown)} most uncertain of {len(self.rows):,}"
        ).__rich__()

    def plot(self, path=None):
        """Mutual information against entropy, a point for each image."""
        from dropbn import plots

        return plots.uncertainty(self.rows, path)


class Draws:
    """Running sums over drawn predictions, in float64."""

    def __init__(self):
        self._number, self._sum, self._squares, self._entropies = 0, 0.0, 0.0, 0.0

    def add(self, logits: np.ndarray) -> None:
        """Adds one draw of logits, (images, classes).

        Raises:
          DropbnError: another shape, or values that are not finite.
        """
        p = softmax(logits)
        self._number += 1
        self._sum, self._squares = self._sum + p, self._squares + p**2
        self._entropies = self._entropies + entropy(p)

    def summary(self, title: str = "") -> Sample:
        """Mean, spread, entropy and mutual information of the added draws."""
        mean = self._sum / self._number
        spread = np.sqrt(np.maximum(self._squares / self._number - mean**2, 0))
        of_mean, best = entropy(mean), mean.argmax(-1)
        information = np.maximum(of_mean - self._entropies / self._number, 0)
        rows = [
            {
                "image": i,
                "prediction": int(best[i]),
                "probability": float(mean[i, best[i]]),
                "spread": float(spread[i, best[i]]),
                "entropy": float(of_mean[i]),
                "mutual_information": float(information[i]),
            }
            for i in range(len(mean))
        ]
        return Sample(rows, title, mean, spread)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, (images, classes), in float64.

    Raises:
      DropbnError: another shape, or values that are not finite.
    """
    if np.ndim(logits) != 2 or not np.all(np.isfinite(logits)):
        broken = " and are not finite" if not np.all(np.isfinite(logits)) else ""
        raise DropbnError(
            f"Probabilities need finite logits of shape (images, classes); these outputs have the shape "
            f"{np.shape(logits)}{broken}."
        )
    p = np.exp(logits - np.max(logits, -1, keepdims=True), dtype=np.float64)
    return p / p.sum(-1, keepdims=True)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """-sum p log p over the last axis, in nats."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(-1)


def scores(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats) and expected calibration error of predictions.

    ECE = sum_b n_b / n |accuracy_b - confidence_b| over `bins` equal intervals of the largest probability
    (Guo et al. 2017, eq. 3).

    Args:
      probabilities: (images, classes).
      labels: (images,).
    """
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    likelihood = np.take_along_axis(probabilities, np.asarray(labels)[:, None], -1)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    excess = np.bincount(which, correct - confidence, bins)
    return {
        "accuracy": float(correct.mean()),
        "nll": float(-np.log(np.maximum(likelihood, 1e-300)).mean()),
        "ece": float(np.abs(excess).sum() / len(correct)),
    }
