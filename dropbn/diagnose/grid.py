"""The evaluation grid: scores for noise on or off, each kind of BN statistics, and each set of images.

There are five kinds of statistics. The last three are averages over the training batches:

===================  =========================================================================================
`running`            the model's running statistics
`batch`              those of the batch that is normalized
`converged`          what the running ones converge to if training goes on with these weights: the average
                     mean and variance of a batch in train mode
`converged by call`  the same for each call of a BN that a forward pass calls several times. `converged`
                     averages the calls by Flax's weights. In other models the two are the same, and only
                     `converged` has rows.
`recalibrated`       as `converged`, with the noise off
===================  =========================================================================================
"""

import itertools
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from dropbn.diagnose import norms, observation
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.interception import Mode
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.model import Model
from dropbn.diagnose.scores import Scorer, Scores, parts_of

BY_CALL = "converged by call"
PLAIN = "train plain"


class Cell(NamedTuple):
    """The place of a row in the grid.

    Attributes:
      noise: whether it is on.
      batch_norm: the kind of statistics.
      data: the images: "train", "test", or "train plain" for training images without augmentation.
    """

    noise: bool
    batch_norm: str
    data: str

    @property
    def labels(self) -> dict[str, str]:
        """The cell as it is printed, by column."""
        return {"noise": "on" if self.noise else "off", "batch_norm": self.batch_norm, "data": self.data}

    @property
    def mode(self) -> Mode:
        """The mode in which the model runs."""
        return Mode(self.noise, "batch" if self.batch_norm == "batch" else "running", update=False)

    def __str__(self) -> str:
        return ", ".join(self.labels.values())


class Source(NamedTuple):
    """One kind of statistics.

    Attributes:
      variables: the model's, with these statistics.
      parts: the variables with statistics of each part of the training batches; None where the statistics
        are not averages over batches.
    """

    variables: dict
    parts: list[dict] | None = None


def sources(model: Model, variables: dict, train: Batches, layers: Layers) -> dict[str, Source]:
    """Every kind of statistics that the model can have, by name.

    Args:
      model: a model and how it is called.
      variables: its variables.
      train: the training batches.
      layers: of the model.
    """
    has_noise = bool(layers.switched_noises)

    def averages(noise):
        mode = Mode(noise, "batch", update=False)
        parts = [
            _averages(model.with_rngs(keys), variables, part, mode)
            for part, keys in parts_of(train, model.rngs(layers))
        ]
        whole = _averages(model, variables, train, mode)
        return {kind: Source(whole[kind], [part[kind] for part in parts]) for kind in whole}

    found = {"running": Source(variables)}
    if layers.has_norm:
        found |= {"batch": Source(variables)} | averages(has_noise)
        if has_noise:
            found["recalibrated"] = averages(False)["converged"]
    return found


def _averages(model, variables, batches, mode):
    """The variables with statistics averaged over batches, by kind."""
    observer = observation.Observer(model, variables, batches, mode)
    by_call = observation.converged_by_call(observer, variables)
    averages = observation.averaged(observer, by_call)
    found = {"converged": norms.with_statistics(observer.known, variables, averages)}
    if any(layer.calls > 1 for layer in observer.layers.values()):
        found[BY_CALL] = observation.with_statistics_by_call(observer, variables, by_call)
    return found


def cells(has_noise: bool, kinds: Iterable[str], has_plain: bool) -> list[Cell]:
    """The cells of the grid in order, for these kinds of statistics."""
    noises = (False, True) if has_noise else (False,)
    found = list(itertools.starmap(Cell, itertools.product(noises, kinds, ("train", "test"))))
    return [found[0], Cell(False, "running", PLAIN), *found[1:]] if has_plain else found


def evaluate(
    cells: Iterable[Cell],
    sources: dict[str, Source],
    scorers: dict[str, Scorer],
    *,
    compared: Collection[Cell],
    kept: Collection[Cell],
) -> tuple[dict[Cell, Scores], dict[Cell, np.ndarray]]:
    """Scores the cells.

    Args:
      cells: of the grid.
      sources: their statistics by kind.
      scorers: one for each set of images, by name.
      compared: cells between which differences are taken. They are also scored with the statistics of parts,
        because the error of a difference follows from these.
      kept: cells whose outputs are wanted.

    Returns:
      (scores, outputs): the scores of every cell, and the outputs of those in `kept`.
    """
    scores, outputs = {}, {}
    for cell in cells:
        source, score = sources[cell.batch_norm], scorers[cell.data]
        scores[cell], output = score(source.variables, cell.mode)
        if cell in compared and source.parts is not None:
            parts = tuple(score(part, cell.mode)[0] for part in source.parts)
            scores[cell] = scores[cell]._replace(parts=parts, share=1 / max(len(parts), 1))
        if cell in kept:
            outputs[cell] = output
    return scores, outputs


def rows(scores: dict[Cell, Scores]) -> list[dict]:
    """The grid as rows of a table: noise, batch_norm, data, accuracy and loss."""
    return [
        cell.labels | {"accuracy": of_cell.mean("correct"), "loss": of_cell.mean("loss")}
        for cell, of_cell in scores.items()
    ]
