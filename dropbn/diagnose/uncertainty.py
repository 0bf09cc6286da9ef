"""Monte Carlo dropout: predictions with the noise kept on, averaged (Gal & Ghahramani 2016)."""

import dataclasses
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import rich.console

from dropbn.diagnose import entry, tasks
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.call import fold_in
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.given import check_count
from dropbn.diagnose.interception import Mode
from dropbn.diagnose.model import Model
from dropbn.diagnose.predictor import Predictor
from dropbn.diagnose.tasks import Task
from dropbn.errors import DropbnError
from dropbn.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Result):
    """Monte Carlo predictions, a row for each example.

    Each row of a task with classes holds, entropies in nats and averaged over positions (pixels, tokens,
    labels) where an example has several:
      image: its number.
      prediction: the class of the largest mean probability; None for an example with several positions.
      probability, spread: mean and standard deviation of that class's probability over the draws.
      entropy: of the mean probabilities, H[E p].
      mutual_information: H[E p] - E H[p], how much the draws disagree.

    Each row of a regression holds:
      image: its number.
      prediction: the mean over the draws; None for an example with several values.
      variance: between the draws, averaged over an example's values. The noise of the labels is not in it.
      spread: its square root.

    Attributes:
      mean, spread: mean and standard deviation over the draws, of the probabilities (examples, ..., classes)
        or of the values. One logit gives the probabilities of two classes.
    """

    mean: np.ndarray = dataclasses.field(repr=False)
    spread: np.ndarray = dataclasses.field(repr=False)

    def most_uncertain(self, number: int = 10) -> list[dict]:
        """The rows with the largest mutual information, or variance in a regression."""
        column = "mutual_information" if "mutual_information" in self.rows[0] else "variance"
        return sorted(self.rows, key=lambda row: -row[column])[:number]

    def __rich__(self) -> rich.console.RenderableType:
        shown = self.most_uncertain()
        return Result(
            shown, f"{self.title}: the {len(shown)} most uncertain of {len(self.rows):,}"
        ).__rich__()

    def plot(self, path: str | os.PathLike | None = None) -> "Figure":
        """Mutual information against entropy, a point for each example.

        Raises:
          DropbnError: a regression, which has neither.
        """
        from dropbn import plots

        if "entropy" not in self.rows[0]:
            raise DropbnError("A regression has no entropy to plot: its rows hold mean, variance and spread.")
        return plots.uncertainty(self.rows, path)


@entry.holds_state
def sample(
    model: ModelOrPair,
    variables: dict,
    batches: Iterable,
    *,
    num_samples: int = 30,
    batch_norm: Literal["running", "batch"] = "running",
    task: str | None = None,
    labels: Any = None,
    **call: Any,
) -> Sample:
    """Predictions under draws of the model's noise: their mean and how much they disagree.

    For classes, p_t = softmax(logits under the t-th draw of noise). The result has the mean and spread over
    t = 1..T, H[E p] and the mutual information H[E p] - E H[p] between the prediction and the noise.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test).
      variables: its variables; they are not changed. An NNX model holds them: leave them out.
      batches: iterated `num_samples` times; see `dropbn.diagnose.batches.Batches`.
      num_samples: T.
      batch_norm: BN's statistics. "running" is usual: they were taken with the noise that is on here too, so
        sampling has no variance shift. With "batch", predictions depend on which images share a batch.
      task: "classify", "binary", "multilabel" or "regress"; see `dropbn.diagnose.tasks`. By default outputs
        and labels decide.
      labels: the part of a batch that the labels are; see `dropbn.diagnose.batches.Batches`. They only help
        to find the task.
      **call: how the model is called; see `dropbn.diagnose.call.Call`.

    Returns:
      A `Sample`; rich prints the most uncertain examples.

    Raises:
      DropbnError: no noise was found; outputs that do not fit the task or are not finite; no batches; no
        samples; one image as a batch with `batch_norm="batch"`.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (4, 8))
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not train))
    >>> found = sample(Net(), Net().init(jax.random.key(1), x, train=False), [x], num_samples=20)
    >>> found.mean.shape, bool(found.rows[0]["mutual_information"] > 0)
    ((4, 3), True)
    """
    called, variables = entry.model_of(model, variables, call)
    data = Batches(batches, called.call.inputs, labels)
    x = data.inputs(data.first)
    layers, its_labels = called.layers(variables, x), data.labels_or_none(data.first)
    called = called.with_output(layers, lambda y: tasks.fits(task, y, its_labels))
    outputs = called.output_shape(layers)
    if its_labels is None and hasattr(x, "shape") and outputs.shape[:1] != x.shape[:1]:
        raise DropbnError(
            f"Outputs of shape {outputs.shape} for {len(x)} examples: pick by outputs= a part that has the "
            "examples along its first axis, such as outputs=lambda y: y[0]."
        )
    decided = tasks.find(task, outputs, its_labels)
    return draw(called, variables, data, decided, num_samples, batch_norm)


def draw(
    model: Model,
    variables: dict,
    batches: Batches,
    task: Task,
    num_samples: int,
    batch_norm: Literal["running", "batch"] = "running",
) -> Sample:
    """As `sample`, given a prepared model, batches and a task."""
    check_count("num_samples", num_samples)
    layers = model.layers(variables, batches.inputs(batches.first))
    model.refuse_one_mode(layers)
    if not layers.draws and not any(use.train for use in layers.noises.values()):
        raise DropbnError(
            "No noise was found that is on in training, so all samples would be the same. A draw whose key "
            "is not one of the call's is not seen."
        )
    predictor, draws = Predictor(model, Mode(True, batch_norm, False)), _Draws(task)
    for number in range(num_samples):
        predicted = predictor(variables, batches, fold_in(model.rngs(layers), number))
        draws.add(np.concatenate([outputs for _, outputs in predicted]))
    title = f"Monte Carlo dropout, {num_samples} samples{model.call.of_output}"
    return draws.summary(f"{title}, BN with {batch_norm} statistics")


class _Draws:
    """Running sums over drawn predictions, in float64."""

    def __init__(self, task: Task):
        self._task, self._number = task, 0
        self._sum = self._squares = self._entropies = np.zeros(())

    def add(self, outputs: np.ndarray) -> None:
        """Adds the outputs of one draw."""
        predictions = self._task.predict(outputs)
        self._number += 1
        self._sum, self._squares = self._sum + predictions, self._squares + predictions**2
        if self._task.has_classes:
            self._entropies = self._entropies + entropy(predictions)

    def summary(self, title: str) -> Sample:
        """Mean, spread and rows of the added draws."""
        mean = self._sum / self._number
        variance = np.maximum(self._squares / self._number - mean**2, 0)
        rows = self._rows_of_classes if self._task.has_classes else self._rows_of_values
        return Sample(rows(mean, np.sqrt(variance)), title, mean=mean, spread=np.sqrt(variance))

    def _rows_of_classes(self, mean, spread):
        of_mean, best = entropy(mean), mean.argmax(-1)
        information = np.maximum(of_mean - self._entropies / self._number, 0)
        probability, spread = (
            np.take_along_axis(of_classes, best[..., None], -1)[..., 0] for of_classes in (mean, spread)
        )
        means = zip(*map(tasks.of_examples, (probability, spread, of_mean, information)), strict=True)
        return [
            {
                "image": i,
                "prediction": int(best[i]) if best.ndim == 1 else None,
                "probability": float(p),
                "spread": float(s),
                "entropy": float(h),
                "mutual_information": float(mutual),
            }
            for i, (p, s, h, mutual) in enumerate(means)
        ]

    def _rows_of_values(self, mean, spread):
        variance, single = tasks.of_examples(spread**2), mean.size == len(mean)
        return [
            {
                "image": i,
                "prediction": float(mean[i].squeeze()) if single else None,
                "variance": float(variance[i]),
                "spread": float(np.sqrt(variance[i])),
            }
            for i in range(len(mean))
        ]


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
