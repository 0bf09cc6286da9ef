"""Why a model is right in training and wrong in test mode: a table of modes, and differences of its rows.

On the way from train mode to test mode seven things change. The table has a row on either side of each, so
that every share of the gap is a difference of two named rows, and the shares add up to the gap:

==================  ============================  ============================
cause               before                        after
==================  ============================  ============================
small-batch noise   on, batch, train              on, converged by call, train
shared statistics   on, converged by call, train  on, converged, train
dropout noise       on, converged, train          off, recalibrated, train
variance shift      off, recalibrated, train      off, converged, train
lagging statistics  off, converged, train         off, running, train
augmentation        off, running, train           off, running, train plain
generalisation      off, running, train plain     off, running, test
==================  ============================  ============================

The names are of the noise, of BN's statistics and of the data. `converged` statistics are what the running
ones would converge to if training went on with these weights: averages over the training batches of their
means and variances in train mode. `recalibrated` ones are the same averages with the noise off. Where a
forward pass calls a BN several times, `converged by call` statistics are those of each call, and `converged`
ones their average by Flax's weights; elsewhere the two are the same and have one row. So the statistics of
two neighbours differ by one thing only.

This is one order of switches. In another order the shares would be others, and they are of training images:
a share is not what its repair brings. `Gap.remedies` says that, measured on test images.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import numpy as np
import rich.console

from dropbn.diagnose import modes, observation
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.modes import Mode
from dropbn.diagnose.remedies import PARTS, Remedies, compare
from dropbn.diagnose.scores import Scorer, classify, difference
from dropbn.errors import DropbnError
from dropbn.results import Result

_PLAIN, _BY_CALL = "train plain", "converged by call"
_TRAINING = {
    "small-batch noise": "The network does better with the statistics of its own batch than with any that "
    "are remembered. Larger batches, or statistics synced over devices, make the two more alike. So do "
    "batches whose images do not belong together.",
    "shared statistics": "A BN that is called several times has one running mean and variance for inputs "
    "that differ. A BN for each domain, or one call on all domains together, avoids it. Recalibration does "
    "not.",
    "dropout noise": "The network does better with noise than without. A lower rate makes the two more "
    "alike.",
    "variance shift": "BN remembers variances that noise had inflated. Training avoids it with noise after "
    "the last BN (Kim et al. 2023, Guideline 1; Li et al. 2018, section 5), with Uout, or with a lower rate. "
    "shift.measure names the layers.",
    "lagging statistics": "The running statistics lag behind the weights. A smaller learning rate at the end "
    "of training, or a lower momentum of BN, avoids it.",
    "augmentation": "The network does better on augmented images than on plain ones. Weaker augmentation "
    "makes the two more alike.",
    "generalisation": "The network knows training images better than test images. More data, augmentation or "
    "regularisation may help.",
}


@dataclasses.dataclass(frozen=True)
class Gap(Result):
    """The table of modes, and what it says.

    Each row holds:
      noise: "on" or "off".
      batch_norm: "running", "batch", "converged by call", "converged" or "recalibrated".
      data: "train", "train plain" or "test".
      accuracy, loss: means over the images; accuracy is None where the score gives none.

    Attributes:
      shares: of the gap; its rows hold the cause, the rows of the table `before` and `after`, the `accuracy`
        that is lost between them (before - after), the `loss` that is gained (after - before), and the
        standard errors of both, `error` and `loss_error`: see `dropbn.diagnose.scores`. The error is None
        where it is not known, such as that of statistics from one batch.
      remedies: what each remedy brings on test images, a `dropbn.diagnose.remedies.Remedies`.
      advice: which remedy to take, and what training may change about the largest share.
      flips: the training images that are right with noise on and batch statistics, and wrong in test mode, as
        in Fig. 6 of Li et al. (2018), from the largest gain of loss on; `image` counts in the order of the
        batches.
      flipped: their share of the training images; None where the score does not tell which are right.
      responses: outputs of the most flipped images in train mode and in test mode, (images, 2, outputs).
      images: those images.
    """

    shares: Result = None
    remedies: Remedies = None
    advice: str = ""
    flips: Result = None
    flipped: float | None = None
    responses: np.ndarray = dataclasses.field(default=None, repr=False)
    images: np.ndarray = dataclasses.field(default=None, repr=False)

    def __rich__(self):
        # A share's row `before` is the row `after` of the share above it.
        shown = [super().__rich__(), self.shares.without("before"), self.remedies, self.advice]
        if self.flipped is not None:
            flipped = f"{self.flipped:.2%} of the training images are right in train mode, wrong in test mode"
            shown.append(f"Flips: {flipped}.")
        return rich.console.Group(*shown)

    def plot(self, path=None):
        """The most flipped images, each with its responses in train mode and in test mode."""
        from dropbn import plots

        return plots.flips(self.images, self.responses, self.flips.rows, path)


def explain(
    model: nn.Module,
    variables: dict,
    train_batches: Iterable,
    test_batches: Iterable,
    *,
    plain_batches: Iterable | None = None,
    inputs: Any = None,
    labels: Any = None,
    score: Callable | None = None,
    num_samples: int | None = None,
    rngs: dict | None = None,
    most_flipped: int = 6,
    **kwargs,
) -> Gap:
    """Splits the gap between train mode on training data and test mode on test data into its causes.

    Args:
      model: any Linen module; see `dropbn.diagnose.modes` for what can be reached.
      variables: its trained variables; they are not changed.
      train_batches: as training has them, with its augmentation, as large, and shuffled: batch statistics are
        among what is compared.
      test_batches: likewise, without augmentation. Both are gone through many times; see
        `dropbn.diagnose.batches.Batches`.
      plain_batches: the images of `train_batches` in the same order without augmentation. Without them no
        share is given to augmentation.
      inputs, labels: which parts of a batch they are.
      score: `score(outputs, batch) -> {"loss", "correct"}`, each (images,); an image is right where correct
        is above one half. Without "correct", such as in a regression, losses are compared. By default the
        cross-entropy of logits, and whether the largest is the label's.
      num_samples: the draws that the remedy `modes.sample` averages, 0 to leave it out; it wants logits of
        classes. By default 10, and 0 with a `score`.
      rngs: random keys by stream, by default key 0 for "dropout".
      most_flipped: how many flipped images are kept to be looked at.
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      A `Gap`. Without noise in the model the table has no rows with noise on. Without BN it has only those
      with running statistics, without a BN that is called several times none by call. No share is given to
      what only the others could tell.

    Raises:
      DropbnError: no batches, statistics in the variables that no BN of the model uses, one image as a batch,
        variables that do not fit, outputs that are not finite.

    >>> import jax
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
    data = {"train": Batches(train_batches, inputs, labels), "test": Batches(test_batches, inputs, labels)}
    if plain_batches is not None:
        data[_PLAIN] = Batches(plain_batches, inputs, labels)
    train, rngs = data["train"], modes.default_rngs(rngs)
    if num_samples is None:
        num_samples = 0 if score else 10
    score = score or classify(train)
    scorers = {name: Scorer(model, batches, name, score, rngs, kwargs) for name, batches in data.items()}
    has_noise = bool(modes.noises(model, variables, train.inputs(train.first), **kwargs))
    has_norm = bool(variables.get("batch_stats"))
    sources = _sources(model, variables, train, has_noise, has_norm, rngs, kwargs)
    way = _way(has_noise, sources, _PLAIN in data)
    train_mode, test_mode = way[0][1], (False, "running", "train")
    cells, outputs = {}, {}
    for cell in _table(has_noise, sources, _PLAIN in data):
        noise, source, name = cell
        mode = Mode(noise, "batch" if source == "batch" else "running", False)
        whole, of_parts = sources[source]
        cells[cell], outputs_of_cell = scorers[name](whole, mode)
        if of_parts is not None and cell in [cell for _, cell in way]:
            parts = tuple(scorers[name](of_part, mode)[0] for of_part in of_parts)
            cells[cell] = cells[cell]._replace(parts=parts, share=1 / max(len(parts), 1))
        if cell in (train_mode, test_mode):
            outputs[cell] = outputs_of_cell
    if _PLAIN in data and len(cells[False, "running", _PLAIN].loss) != len(cells[test_mode].loss):
        raise DropbnError("plain_batches have other images than train_batches: give the same in their order.")
    rows = [
        {"noise": _switch(noise), "batch_norm": source, "data": name}
        | {"accuracy": scores.mean("correct"), "loss": scores.mean("loss")}
        for (noise, source, name), scores in cells.items()
    ]
    shares = _shares(cells, way)
    tried = compare(
        model, variables, train, scorers["test"], num_samples=num_samples, rngs=rngs, kwargs=kwargs
    )
    flips, order = _flips(cells[train_mode], cells[test_mode])
    kept = order[:most_flipped]
    return Gap(
        rows,
        "Accuracy and loss by mode",
        Result(
            [row for row, _ in shares], "What is lost from train mode to test mode, in one order of switches"
        ),
        tried,
        _advise(shares, tried, has_noise, has_norm),
        Result(flips, "Right in train mode, wrong in test mode"),
        None if cells[train_mode].correct is None else len(flips) / len(cells[train_mode].correct),
        np.stack([outputs[cell][kept] for cell in (train_mode, test_mode)], 1),
        _images(train, kept),
    )


def _sources(model, variables, train, has_noise, has_norm, rngs, kwargs):
    """BN's source -> (the variables, those with statistics of each part of the training batches, or None)."""

    def converged(noise, batches, rngs):
        observer = observation.Observer(model, variables, batches, Mode(noise, "batch", False), rngs, kwargs)
        by_call = observation.settled_by_call(observer, variables)
        found = {"converged": observation.with_statistics(variables, observation.averaged(observer, by_call))}
        if any(layer.calls > 1 for layer in observer.layers.values()):
            found[_BY_CALL] = observation.with_statistics_by_call(observer, variables, by_call)
        return found

    def with_parts(noise):
        # Parts with the same masks would hide what depends on the masks.
        parts = [converged(noise, part, modes.fold_in(rngs, i)) for i, part in enumerate(train.parts(PARTS))]
        whole = converged(noise, train, rngs)
        return {source: (whole[source], [part[source] for part in parts]) for source in whole}

    sources = {"running": (variables, None)}
    if has_norm:
        sources |= {"batch": (variables, None)} | with_parts(has_noise)
        if has_noise:
            sources["recalibrated"] = with_parts(False)["converged"]
    return sources


def _switch(noise):
    return "on" if noise else "off"


def _table(has_noise, sources, has_plain):
    """The cells (noise, BN's source, data) of the table."""
    noises = (False, True) if has_noise else (False,)
    cells = list(itertools.product(noises, sources, ("train", "test")))
    return [cells[0], (False, "running", _PLAIN), *cells[1:]] if has_plain else cells


def _way(has_noise, sources, has_plain):
    """(cause, cell) from train mode on training data to test mode on test data: what changes at each step."""
    has_norm = "batch" in sources
    way = [("", (has_noise, "batch" if has_norm else "running", "train"))]
    if has_norm:
        by_call = [_BY_CALL] * (_BY_CALL in sources)
        causes = ("small-batch noise", "shared statistics")
        way += [
            (cause, (has_noise, by, "train"))
            for cause, by in zip(causes, [*by_call, "converged"], strict=False)
        ]
    if has_noise:
        way.append(("dropout noise", (False, "recalibrated" if has_norm else "running", "train")))
    if has_noise and has_norm:
        way.append(("variance shift", (False, "converged", "train")))
    if has_norm:
        way.append(("lagging statistics", (False, "running", "train")))
    if has_plain:
        way.append(("augmentation", (False, "running", _PLAIN)))
    return [*way, ("generalisation", (False, "running", "test"))]


def _shares(cells, way):
    """(row, what is lost) for each cause and the whole gap: accuracy, or loss where there is no other."""
    steps = [(cause, before, after) for (_, before), (cause, after) in itertools.pairwise(way)]
    steps.append(("the whole gap", way[0][1], way[-1][1]))
    return [_share(cause, before, after, cells) for cause, before, after in steps]


def _share(cause, before, after, cells):
    paired = "test" not in after
    accuracy = difference(cells[after], cells[before], "correct", paired=paired)
    loss = difference(cells[before], cells[after], "loss", paired=paired)
    row = {
        "cause": cause,
        "before": ", ".join((_switch(before[0]), *before[1:])),
        "after": ", ".join((_switch(after[0]), *after[1:])),
        "accuracy": accuracy and accuracy.value,
        "error": accuracy and accuracy.error,
        "loss": loss.value,
        "loss_error": loss.error,
    }
    return row, accuracy or loss


def _advise(shares, tried, has_noise, has_norm):
    """Sentences: what the model lacks, which remedy helps, and where the largest share of the gap is."""
    sentences = [tried.advice]
    if not has_norm:
        sentences.insert(0, "No BN was found, so no share of the gap is given to its statistics.")
    if not has_noise:
        sentences.insert(0, "No noise was found, so no share of the gap is given to noise.")
    *causes, _ = shares
    sure = [(row, lost) for row, lost in causes if (lost.least(len(causes)) or 0) > 0]
    if sure:
        row, lost = max(sure, key=lambda share: share[1].value)
        size = lost.words("loss" if row["accuracy"] is None else "correct")
        where = f"from ({row['before']}) to ({row['after']})"
        sentences.append(f"The largest share of the gap is {row['cause']}: {size} {where}.")
        sentences.append(_TRAINING[row["cause"]])
    return " ".join(sentences)


def _flips(train_mode, test_mode):
    """Rows of the flipped images, and their numbers, from the largest gain of loss on."""
    if train_mode.correct is None:
        return [], np.zeros(0, int)
    flipped = np.flatnonzero((train_mode.correct > 0.5) & (test_mode.correct <= 0.5))
    gain = test_mode.loss - train_mode.loss
    order = flipped[np.argsort(-gain[flipped], kind="stable")]
    rows = [
        {
            "image": int(i),
            "loss_train_mode": float(train_mode.loss[i]),
            "loss_test_mode": float(test_mode.loss[i]),
        }
        for i in order
    ]
    return rows, order


def _images(batches, numbers):
    """The images of these numbers, counted in the order of the batches."""
    found, start = {}, 0
    for batch in batches:
        x = batches.inputs(batch)
        found |= {i: np.asarray(x[i - start]) for i in numbers if start <= i < start + len(x)}
        start += len(x)
    return np.array([found[i] for i in numbers])
