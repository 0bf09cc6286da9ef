"""Why a model is right in training and wrong in test mode: a table of modes, and differences of its rows.

On the way from train mode to test mode five things change. The table has a row on either side of each, so
that every share of the gap is a difference of two named rows, and the shares add up to the gap:

==================  ========================  ========================
cause               before                    after
==================  ========================  ========================
small-batch noise   on, batch, train          on, settled, train
dropout noise       on, settled, train        off, recalibrated, train
variance shift      off, recalibrated, train  off, settled, train
lagging statistics  off, settled, train       off, running, train
generalisation      off, running, train       off, running, test
==================  ========================  ========================

The names are of the noise, of BN's statistics and of the data. `settled` statistics are what the running ones
would settle to if training went on with these weights: averages over the training batches of their means and
variances in train mode. `recalibrated` ones are the same averages with the noise off. So the statistics of
two neighbours differ by one thing only.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import numpy as np
import rich.console

from dropbn import modes, observation, uncertainty
from dropbn.batches import Batches
from dropbn.errors import DropbnError
from dropbn.modes import Mode
from dropbn.results import Result

_ADVICE = {
    "small-batch noise": "the network does better with the statistics of its own batch than with any that "
    "are remembered: use larger batches or statistics synced over devices, and look whether the images of a "
    "batch belong together.",
    "dropout noise": "the network does better with noise than without: average predictions under noise "
    "(modes.sample), or lower the rate.",
    "variance shift": "BN remembers variances that noise had inflated. Repair: "
    "recalibrate.recalibrate(model, variables, batches). Prevent: noise after the last BN (Kim et al. 2023, "
    "Guideline 1; Li et al. 2018, section 5), Uout, or a lower rate; shift.measure names the layers.",
    "lagging statistics": "running statistics lag behind the weights. Repair: recalibrate.recalibrate(model, "
    "variables, batches). Prevent: end training with a smaller learning rate, or lower BN's momentum.",
    "generalisation": "training images are known better than test images, whatever the mode: more data, "
    "augmentation or regularisation; no statistics will cure it.",
}


@dataclasses.dataclass(frozen=True)
class Gap(Result):
    """The table of modes, and what it says.

    Each row holds:
      noise: "on" or "off".
      batch_norm: "running", "batch", "settled" or "recalibrated".
      data: "train" or "test".
      accuracy, loss: means over the images.

    Attributes:
      shares: of the gap; its rows hold the cause, the rows of the table `before` and `after`, the `accuracy`
        that is lost between them (before - after), the `loss` that is gained (after - before), and the
        standard `error` of the accuracy, paired where both rows are of the same images.
      advice: what to do about the largest share.
      flips: the training images that are right with noise on and batch statistics, and wrong in test mode, as
        in Fig. 6 of Li et al. (2018), from the largest gain of loss on; `image` counts in the order of the
        batches.
      flipped: their share of the training images.
      responses: outputs of the most flipped images in train mode and in test mode, (images, 2, outputs).
      images: those images.
    """

    shares: Result = None
    advice: str = ""
    flips: Result = None
    flipped: float = 0.0
    responses: np.ndarray = dataclasses.field(default=None, repr=False)
    images: np.ndarray = dataclasses.field(default=None, repr=False)

    def __rich__(self):
        flipped = (
            f"Flips: {self.flipped:.2%} of the training images are right in train mode, wrong in test mode."
        )
        return rich.console.Group(super().__rich__(), self.shares, self.advice, flipped)

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
    inputs: Any = None,
    labels: Any = None,
    score: Callable | None = None,
    rngs: dict | None = None,
    most_flipped: int = 6,
    **kwargs,
) -> Gap:
    """Splits the gap between train mode on training data and test mode on test data into its causes.

    Args:
      model: any Linen module; see `dropbn.modes` for what can be reached.
      variables: its trained variables; they are not changed.
      train_batches: as large as those of training, and shuffled: batch statistics are among what is compared.
      test_batches: likewise. Both are gone through several times; see `dropbn.batches.Batches`.
      inputs, labels: which parts of a batch they are.
      score: `score(outputs, batch) -> {"loss", "correct"}`, each (images,); an image is right where correct
        is above one half. By default the cross-entropy of logits, and whether the largest is the label's.
      rngs: random keys by stream, by default key 0 for "dropout".
      most_flipped: how many flipped images are kept to be looked at.
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      A `Gap`. Without noise in the model the table has no rows with noise on, without BN only those with
      running statistics, and no share is given to what only the others could tell.

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
    data = {
        "train": Batches(train_batches, inputs, labels),
        "test": Batches(test_batches, inputs, labels),
    }
    score = score or _classify(data["train"])
    x = data["train"].inputs(data["train"].first)
    has_noise = bool(modes.noises(model, variables, x, **kwargs))
    given = {"running": variables}
    if variables.get("batch_stats"):
        given["batch"] = variables
        given["settled"] = _with_settled(model, variables, data["train"], has_noise, rngs, kwargs)
        if has_noise:
            given["recalibrated"] = _with_settled(model, variables, data["train"], False, rngs, kwargs)
    way = _way(has_noise, "batch" in given)
    train_mode, test_mode = way[0][1], way[-2][1]
    cells, outputs = {}, {}
    for noise in (False, True)[: 1 + has_noise]:
        predictors = {
            by: modes.Predictor(model, Mode(noise, by, False), kwargs) for by in ("running", "batch")
        }
        for source, name in itertools.product(given, data):
            predict = predictors["batch" if source == "batch" else "running"]
            cell, found = _scores(score, predict(given[source], data[name], rngs), name)
            cells[noise, source, name] = cell
            if (noise, source, name) in (train_mode, test_mode):
                outputs[noise, source, name] = found
    rows = [
        {"noise": _switch(noise), "batch_norm": source, "data": name}
        | {"accuracy": float(cell["correct"].mean()), "loss": float(cell["loss"].mean())}
        for (noise, source, name), cell in cells.items()
    ]
    shares = _shares(cells, way)
    flips, order = _flips(cells[train_mode], cells[test_mode])
    kept = order[:most_flipped]
    return Gap(
        rows,
        "Accuracy and loss by mode",
        Result(shares, "What is lost between two rows: noise, batch norm, data"),
        _advise(shares, has_noise, "batch" in given),
        Result(flips, "Right in train mode, wrong in test mode"),
        len(flips) / len(cells[train_mode]["correct"]),
        np.stack([outputs[cell][kept] for cell in (train_mode, test_mode)], 1),
        _images(data["train"], kept),
    )


def _with_settled(model, variables, batches, noise, rngs, kwargs):
    observer = observation.Observer(model, variables, batches, Mode(noise, "batch", False), rngs, kwargs)
    return observation.with_statistics(variables, observation.settled(observer, variables))


def _classify(batches):
    def score(outputs, batch):
        labels = np.asarray(batches.labels(batch))
        fits = outputs.ndim == 2 and labels.shape == outputs.shape[:1]
        if not (fits and 0 <= labels.min() <= labels.max() < outputs.shape[1]):
            raise DropbnError(
                f"Outputs of shape {outputs.shape} and labels of shape {labels.shape} from {labels.min()} to "
                f"{labels.max()} are no classification: give labels=, or score= for another task."
            )
        labels = labels.astype(int)
        p = uncertainty.softmax(outputs)
        chosen = np.take_along_axis(p, labels[:, None], -1)[:, 0]
        return {"loss": -np.log(np.maximum(chosen, 1e-300)), "correct": p.argmax(-1) == labels}

    return score


def _scores(score, predictions, name):
    """{"loss", "correct"} of all images in float64, and the outputs."""
    scores, outputs = [], []
    for batch, output in predictions:
        if not np.all(np.isfinite(output)):
            raise DropbnError(
                f"Outputs for the {name} batches are not finite: look for NaN in batches or weights."
            )
        scores.append(score(output, batch))
        outputs.append(output)
    cell = {
        key: np.concatenate([np.asarray(part[key], np.float64) for part in scores])
        for key in ("loss", "correct")
    }
    return cell, np.concatenate(outputs)


def _switch(noise):
    return "on" if noise else "off"


def _way(has_noise, has_norm):
    """(cause, cell) from train mode on training data to test mode on test data: what changes at each step."""
    way = [("", (has_noise, "batch" if has_norm else "running", "train"))]
    if has_norm:
        way.append(("small-batch noise", (has_noise, "settled", "train")))
    if has_noise:
        way.append(("dropout noise", (False, "recalibrated" if has_norm else "running", "train")))
    if has_noise and has_norm:
        way.append(("variance shift", (False, "settled", "train")))
    if has_norm:
        way.append(("lagging statistics", (False, "running", "train")))
    return [*way, ("generalisation", (False, "running", "test"))]


def _shares(cells, way):
    """A row for each cause, and one for the whole gap."""
    steps = [(cause, before, after) for (_, before), (cause, after) in itertools.pairwise(way)]
    steps.append(("the whole gap", way[0][1], way[-1][1]))
    return [_share(cause, before, after, cells) for cause, before, after in steps]


def _share(cause, before, after, cells):
    a, b = cells[before], cells[after]
    if before[2] == after[2]:
        error = np.std(a["correct"] - b["correct"]) / len(a["correct"]) ** 0.5
    else:
        error = sum(np.var(cell["correct"]) / len(cell["correct"]) for cell in (a, b)) ** 0.5
    return {
        "cause": cause,
        "before": ", ".join((_switch(before[0]), *before[1:])),
        "after": ", ".join((_switch(after[0]), *after[1:])),
        "accuracy": float(a["correct"].mean() - b["correct"].mean()),
        "error": float(error),
        "loss": float(b["loss"].mean() - a["loss"].mean()),
    }


def _advise(shares, has_noise, has_norm):
    *causes, whole = shares
    largest = max(causes, key=lambda share: share["accuracy"])
    lacking = " and ".join(["no dropout"] * (not has_noise) + ["no batch normalization"] * (not has_norm))
    nothing = lacking and f"The model has {lacking}, so none of the gap is variance shift. "
    if largest["accuracy"] <= 2 * largest["error"]:
        return nothing + "No cause takes more accuracy than two standard errors: there is nothing to repair."
    points = f"{100 * largest['accuracy']:.1f} of {100 * whole['accuracy']:.1f} points of accuracy"
    return f"{nothing}Largest share: {largest['cause']}, {points}; {_ADVICE[largest['cause']]}"


def _flips(train_mode, test_mode):
    """Rows of the flipped images, and their numbers, from the largest gain of loss on."""
    flipped = np.flatnonzero((train_mode["correct"] > 0.5) & (test_mode["correct"] <= 0.5))
    gain = test_mode["loss"] - train_mode["loss"]
    order = flipped[np.argsort(-gain[flipped], kind="stable")]
    rows = [
        {
            "image": int(i),
            "loss_train_mode": float(train_mode["loss"][i]),
            "loss_test_mode": float(test_mode["loss"][i]),
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
