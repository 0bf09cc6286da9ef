"""The published recipes of recalibration: how statistics are taken again from batches."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from dropbn.diagnose import norms
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.cache import cached
from dropbn.diagnose.call import fold_in, num_examples
from dropbn.diagnose.interception import LI_ADJUST, Mode
from dropbn.diagnose.model import Model
from dropbn.diagnose.observation import Observer
from dropbn.diagnose.tracing import Path
from dropbn.errors import DropbnError
from dropbn.nn.kernels import moments
from dropbn.nn.kernels.moments import Moments

# Statistics have converged where a further pass moves none of them by more than this, in standard deviations
# (mean) and relatively (variance).
_CONVERGED = 1e-5
# A layer is final after as many passes as layers; only one that is called twice may need more.
_MOST_PASSES = 100


class Options(NamedTuple):
    """The options of `dropbn.diagnose.recalibrate.recalibrate`."""

    noise: bool
    passes: int | None
    tolerance: float


class Taken(NamedTuple):
    """What a recipe has taken.

    Attributes:
      variables: the model's, with the new statistics.
      observer: the observer of its layers.
      num_images: how many images a pass took.
      num_passes: how often the batches were gone through.
      spreads: path -> [(count, variance around the mean so far) of each batch]; None for "li2018_moving".
    """

    variables: dict
    observer: Observer
    num_images: int
    num_passes: int
    spreads: dict[Path, list] | None


def dropout_off(model: Model, variables: dict, batches: Batches, options: Options) -> Taken:
    """The population's moments in test mode, pass after pass until no statistics move any more."""
    observer = Observer(model, variables, batches, Mode(False, "running", False))
    most = options.passes or max(len(list(observer.each())) + 1, _MOST_PASSES)
    new, number = variables, None
    for num_passes in range(1, most + 1):
        try:
            statistics, spreads, number = _population(observer, new, options.tolerance, number)
        except DropbnError as error:
            if num_passes == 1:
                raise
            raise DropbnError(
                f"The statistics diverge in pass {num_passes}, because the old ones lie too far off: begin "
                f"with recipe='precise_bn', and give its batch_stats to this recipe. ({error})"
            ) from error
        before, new = new, norms.with_statistics(observer.known, new, statistics)
        if options.passes is None and _distance(observer, before, new) < _CONVERGED:
            break
    return Taken(new, observer, observer.num_images, num_passes, spreads)


def precise_bn(model: Model, variables: dict, batches: Batches, options: Options) -> Taken:
    """The population's moments with BN using the batch."""
    observer = Observer(model, variables, batches, Mode(options.noise, "batch", False))
    new, number = variables, None
    for _ in range(options.passes or 1):
        statistics, spreads, number = _population(observer, new, options.tolerance, number)
        new = norms.with_statistics(observer.known, new, statistics)
    return Taken(new, observer, observer.num_images, options.passes or 1, spreads)


def moving_average(
    model: Model,
    variables: dict,
    batches: Batches,
    options: Options,
    *,
    batch_norm: Literal["batch", "running"],
    keeps_mean: bool = False,
) -> Taken:
    """Moving averages of batch means and variances, from the old statistics on, with the noise off."""
    observer = Observer(model, variables, batches, Mode(False, batch_norm, False))
    new = variables
    for _ in range(options.passes or 1):
        statistics, spreads = _moved(observer, new)
        if keeps_mean:
            statistics = {
                path: (norms.statistics(observer.known, new, path)[0], variance)
                for path, (_, variance) in statistics.items()
            }
        new = norms.with_statistics(observer.known, new, statistics)
    return Taken(new, observer, observer.num_images, options.passes or 1, spreads)


def li2018_moving(model: Model, variables: dict, batches: Batches, options: Options) -> Taken:
    """`modes.LI_ADJUST`, batch after batch, each normalized with what those before it have moved."""
    observer = Observer(model, variables, batches, LI_ADJUST)
    rngs, adjust, new = observer.rngs, _adjusting(model), variables
    for _ in range(options.passes or 1):
        num_images = 0
        for index, x in enumerate(map(batches.inputs, batches)):
            new = {**variables, "batch_stats": jax.block_until_ready(adjust(new, x, rngs, index))}
            num_images += num_examples(x)
    return Taken(new, observer, num_images, options.passes or 1, None)


RECIPES: dict[str, Callable[[Model, dict, Batches, Options], Taken]] = {
    "dropout_off": dropout_off,
    "li2018": functools.partial(moving_average, batch_norm="running"),
    "li2018_moving": li2018_moving,
    "li2018_torch": functools.partial(moving_average, batch_norm="batch"),
    "hendrycks2016": functools.partial(moving_average, batch_norm="batch", keeps_mean=True),
    "precise_bn": precise_bn,
}


def error(counts: Sequence[np.ndarray], variances: Sequence[np.ndarray]) -> float:
    """Relative standard error of a variance estimated from those of batches; the largest in a stack."""
    n, v = np.stack(counts), np.stack(variances)
    number, total = len(n), n.sum(0)
    mean = (n * v).sum(0) / total
    squares = np.square(n * (v - mean)).sum(0) * number / (number - 1)
    return np.max(np.sqrt(squares) / total / mean)


@cached
def _adjusting(model):
    @jax.jit
    def adjust(variables, x, rngs, index):
        return model.apply(variables, x, LI_ADJUST, fold_in(rngs, index))[1]

    return adjust


def _population(observer, variables, tolerance, most):
    """Exact moments of one pass over the batches, `most` of them.

    Returns:
      ({path: (mean, variance)}, spreads as of `Taken`, how many batches were taken).
    """
    totals: dict[Path, Moments] = {}
    spreads: dict[Path, list] = {path: [] for path in observer.moving}
    for number, found in enumerate(observer(variables), 1):
        _add(totals, spreads, found)
        known = number % 8 == 0 and most is None
        if number == most or (
            known and all(error(*zip(*s, strict=True)) < tolerance for s in spreads.values())
        ):
            break
    return {path: (total.mean, total.variance) for path, total in totals.items()}, spreads, number


def _moved(observer, variables):
    """Statistics moved by every call of one pass over the batches, and spreads as of `Taken`."""
    averages = {path: norms.statistics(observer.known, variables, path) for path in observer.moving}
    totals: dict[Path, Moments] = {}
    spreads: dict[Path, list] = {path: [] for path in observer.moving}
    for found in observer(variables):
        _add(totals, spreads, found)
        for path in observer.moving:
            norm = observer.layers[path].norm
            for call in found[path]:
                averages[path] = tuple(
                    norm.momentum * old + (1 - norm.momentum) * now
                    for old, now in zip(averages[path], norm.remembered(call), strict=True)
                )
    return averages, spreads


def _add(totals, spreads, found):
    """Adds the moments of a batch to the totals, and its spread around the mean so far."""
    for path in spreads:
        new = functools.reduce(moments.merge, found[path])
        total = totals[path] = moments.merge(totals[path], new) if path in totals else new
        around = np.mean(new.variance + np.square(new.mean - total.mean), -1)
        spreads[path].append((new.count, around))


def _distance(observer, before, after):
    """How far a pass has moved statistics: the mean in standard deviations, the variance relatively."""
    largest = 0.0
    for path, layer in observer.layers.items():
        (old_mean, old_var), (mean, var) = (
            norms.statistics(observer.known, given, path) for given in (before, after)
        )
        scale = old_var + layer.norm.epsilon
        largest = max(
            largest, np.max(np.abs(mean - old_mean) / np.sqrt(scale)), np.max(np.abs(var - old_var) / scale)
        )
    return largest
