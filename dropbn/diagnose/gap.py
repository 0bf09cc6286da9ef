"""Why a model is right in training and wrong in test mode.

`explain` evaluates a grid of noise, BN statistics and images (`dropbn.diagnose.grid`). Differences of its
rows split the gap between train mode and test mode into causes (`dropbn.diagnose.shares`). Then it tries what
helps a trained model (`dropbn.diagnose.remedies`) and lists the images that the gap costs
(`dropbn.diagnose.flips`).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.console

from dropbn.diagnose import entry, flips, grid, remedies, shares, tasks, witness
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.flips import Flips
from dropbn.diagnose.remedies import Remedies
from dropbn.diagnose.scores import Scorer
from dropbn.diagnose.shares import Shares
from dropbn.errors import DropbnError, shown
from dropbn.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap(Result):
    """The evaluation grid, and what it says.

    Each row holds:
      noise: "on" or "off".
      batch_norm: BN's statistics: "running", "batch", "converged by call", "converged" or "recalibrated"; see
        `dropbn.diagnose.grid`.
      data: "train", "train plain" or "test".
      accuracy, loss: means over the images; accuracy is None where the score gives none.

    Attributes:
      shares: what each cause takes of accuracy and loss.
      remedies: what each remedy brings on test images.
      flips: the training images that are right in train mode and wrong in test mode.
      draws: where training draws random numbers that belong to no registered noise.
      never_off: noises and draws that are on in test mode too.
      other_state: modules with running state that is not a batch normalization's.
      unseen: what training does besides the known noises and BN, a sentence; see `dropbn.diagnose.witness`.
    """

    shares: Shares
    remedies: Remedies
    flips: Flips
    draws: tuple[str, ...]
    never_off: tuple[str, ...]
    other_state: tuple[str, ...]
    unseen: str

    @property
    def advice(self) -> str:
        """Which remedy to take, and what training may change about the largest share."""
        causes, sentences = [row["cause"] for row in self.shares.rows], []
        if self.draws:
            sentences.append(
                "Training draws random numbers that belong to no registered noise "
                f"({'; '.join(self.draws)}): no share separates what they do."
            )
        if self.never_off:
            sentences.append(f"Noise that is on in test mode too has no share: {'; '.join(self.never_off)}.")
        if self.other_state:
            sentences.append(
                "Running state that is not a batch normalization's is neither switched nor measured: "
                f"{'; '.join(self.other_state)}."
            )
        if self.unseen:
            sentences.append(f"{self.unseen} No share separates what it does.")
        elif not (self.draws or self.never_off) and "dropout noise" not in causes:
            sentences.append("No noise was found, so no share of the gap is attributed to it.")
        if "lagging statistics" not in causes:
            known = "known " if self.other_state else ""  # The other state may be a BN's.
            sentences.append(
                f"No {known}BN takes statistics in training, so no share of the gap is attributed to them."
            )
        return " ".join(filter(None, [*sentences, self.remedies.advice, self.shares.advice]))

    def __rich__(self) -> rich.console.RenderableType:
        shown: list[Any] = [super().__rich__(), self.shares, self.remedies, self.advice]
        if self.flips.share is not None:
            flipped = f"{self.flips.share:.2%} of the training images"
            shown.append(f"Flips: {flipped} are right in train mode and wrong in test mode.")
        return rich.console.Group(*shown)

    def plot(self, path: str | os.PathLike | None = None) -> "Figure":
        """The most flipped images, each with its responses in train mode and in test mode."""
        return self.flips.plot(path)


@entry.holds_state
def explain(
    model: ModelOrPair,
    variables: dict,
    train_batches: Iterable,
    test_batches: Iterable,
    *,
    plain_batches: Iterable | None = None,
    labels: Any = None,
    task: str | None = None,
    score: Callable | None = None,
    num_samples: int | None = None,
    most_flipped: int = 6,
    **call: Any,
) -> Gap:
    """Splits the gap between train mode on training data and test mode on test data into its causes.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test);
        see `dropbn.diagnose.modes` for what can be reached.
      variables: its trained variables; they are not changed. An NNX model holds them: leave them out.
      train_batches: batches as in training: augmented, of the same size and shuffled, because batch
        statistics are compared too.
      test_batches: batches of the same size, not augmented. Both are iterated many times; see
        `dropbn.diagnose.batches.Batches`.
      plain_batches: the images of `train_batches` in the same order, not augmented. Without them augmentation
        has no share.
      labels: which part of a batch the labels are; see `dropbn.diagnose.batches.Batches`.
      task: "classify", "binary", "multilabel" or "regress"; see `dropbn.diagnose.tasks`. By default outputs
        and labels decide.
      score: `score(outputs, batch) -> {"loss", "correct"}`, each (images,), in the place of the task's. An
        image is right where "correct" is above one half. Without "correct", as in a regression, losses are
        compared.
      num_samples: the draws that the remedy `uncertainty.sample` averages; 0 leaves it out. The default is
        10, or 0 with a `score`.
      most_flipped: how many flipped images are kept for `Gap.plot`.
      **call: how the model is called; see `dropbn.diagnose.call.Call`.

    Returns:
      A `Gap`. Without noise in the model, the grid has no rows with noise on. Without BN, it has only rows
      with running statistics. A cause whose rows are missing has no share.

    Raises:
      DropbnError: no batches, statistics in the variables that no BN of the model uses, one image as a batch,
        variables that do not fit, outputs that are not finite, a task that cannot be told.

    >>> import flax.linen as nn, jax
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         x = nn.BatchNorm()(nn.Dropout(0.5)(x, deterministic=not train), use_running_average=not train)
    ...         return nn.Dense(2)(x)
    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> batches = [(x, x[:, 0] > 0)]
    >>> found = explain(Net(), Net().init(jax.random.key(1), x, train=False), batches, batches)
    >>> gap = found.shares.rows[-1]["accuracy"]
    >>> bool(abs(sum(row["accuracy"] for row in found.shares.rows[:-1]) - gap) < 1e-9)
    True
    """
    called, variables = entry.model_of(model, variables, call)
    given = {"train": train_batches, "test": test_batches}
    if plain_batches is not None:
        given[grid.PLAIN] = plain_batches
    data = {name: Batches(batches, called.call.inputs, labels) for name, batches in given.items()}
    train = data["train"]
    x = train.inputs(train.first)
    layers = called.layers(variables, x)
    called.refuse_one_mode(layers)
    layers.refuse_unregistered_norms(variables)
    if num_samples is None:
        num_samples = 0 if score else 10
    # A score of the user's own may want another part than the labels tell.
    its_labels = None if score else train.labels_or_none(train.first)
    called = called.with_output(layers, lambda y: tasks.fits(task, y, its_labels))
    decided = None
    if num_samples or not score:
        decided = tasks.find(task, called.output_shape(layers), train.labels_or_none(train.first))
    if score is not None and not callable(score):
        raise DropbnError(f"score={shown(repr(score))}: give a function of (outputs, batch).")
    score = score or functools.partial(_score, decided, train)
    scorers = {name: Scorer(called, batches, name, score) for name, batches in data.items()}

    has_noise = bool(layers.switched_noises)
    sources = grid.sources(called, variables, train, layers)
    cells = grid.cells(has_noise, sources, has_plain=grid.PLAIN in data)
    path = shares.path(has_noise, sources, has_plain=grid.PLAIN in data)
    compared = {cell for step in path for cell in (step.before, step.after)}
    both_modes = path[0].before, grid.Cell(False, "running", "train")
    scores, outputs = grid.evaluate(cells, sources, scorers, compared=compared, kept=both_modes)
    if len({len(of_cell.loss) for cell, of_cell in scores.items() if cell.data != "test"}) > 1:
        raise DropbnError(
            "plain_batches hold other images than train_batches: give the same images in the same order."
        )
    return Gap(
        grid.rows(scores),
        f"Evaluation grid: accuracy and loss{called.call.of_output}",
        shares=shares.split(scores, path),
        remedies=remedies.compare(called, variables, train, scorers["test"], layers, num_samples, decided),
        flips=flips.find(
            [scores[cell] for cell in both_modes],
            [outputs[cell] for cell in both_modes],
            train,
            most_flipped,
        ),
        draws=tuple(layers.unswitched),
        never_off=tuple(layers.never_off),
        other_state=tuple(layers.other_state(variables)),
        unseen=witness.unseen(called, variables, x, layers),
    )


def _score(task, batches, outputs, batch):
    return task.score(outputs, np.asarray(batches.labels(batch)))
