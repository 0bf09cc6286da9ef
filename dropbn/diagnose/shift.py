"""The variance shift of any Flax model: measured, and predicted before training.

In training, BN divides by a standard deviation that dropout has inflated, and remembers it. In test
mode dropout is off and the real variance is smaller, but BN still divides by the remembered one.
The shift of a BN layer is real / moving variance: 1 without a shift, below 1 where dropout precedes BN
(Delta of Li et al. 2018, eq. 8 and 12).
"""

import dataclasses
import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dropbn.diagnose import entry, norms, observation
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.interception import TEST, TRAIN
from dropbn.diagnose.tracing import Path
from dropbn.errors import DropbnError, unknown
from dropbn.nn.kernels import moments
from dropbn.nn.kernels.moments import Moments
from dropbn.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Shift(Result):
    """The shift of every BN layer, measured or predicted, in network order.

    Each row holds, variances and means being averages over the layer's channels:
      layer: path of the BN module, joined by "/"; "[i]" marks the i-th of layers stacked by `nn.scan`. A
        layer that a forward pass calls several times has a row for each call, marked "[call 1]" and so on.
      count: values per channel behind real_var.
      moving_var: running variance (biased, as Flax keeps it).
      real_var: variance of the layer's input in test mode (biased).
      ratio: real_var / moving_var.
      mean_shift: RMS over channels of (real mean - running mean) / sqrt(running variance + epsilon).
    """

    def most_shifted(self, number: int = 3) -> list[dict]:
        """The rows whose ratio is farthest from 1, by max(ratio, 1 / ratio)."""
        return sorted(self.rows, key=lambda row: -max(row["ratio"], 1 / row["ratio"]))[:number]

    def plot(
        self, path: str | os.PathLike | None = None, label: str = "shift", **others: "Shift"
    ) -> "Figure":
        """max(ratio, 1 / ratio) against the BN layer's index, as Li et al. (2018) Fig. 4.

        Args:
          path: file to write.
          label: of this curve.
          **others: further curves by label, such as `predicted=shift.predict(...)`.
        """
        from dropbn import plots

        return plots.shift({label: self.rows} | {name: other.rows for name, other in others.items()}, path)


@entry.holds_state
def measure(
    model: ModelOrPair,
    variables: dict,
    batches: Iterable,
    *,
    estimator: str = "pooled",
    **call: Any,
) -> Shift:
    """Measures the shift of every BN layer of a trained model, in test mode with statistics frozen.

    Two estimators of the real variance:

    - "pooled": the population variance of each layer's input over all batches, exact for any split of
      the data into batches, on any number of devices.
    - "li2018": the moving average of batch variances, by the layer's own momentum, as Li et al. (2018,
      section 4) do; give it augmented training data. The first batch starts the average, so that the
      result does not depend on the running variance with which it is compared. If a forward pass calls a
      layer k times, the momentum is momentum^k, because Flax's running variance moves k times in each batch.

    Neither applies Bessel's correction, as Flax's running variance does not; the papers' (PyTorch's)
    variances are larger by m / (m - 1) for m values per channel and batch.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test);
        see `dropbn.diagnose.modes` for what can be reached.
      variables: its trained variables; they are not changed. An NNX model holds them: leave them out.
      batches: arrays, tuples or dicts, iterated once; see `dropbn.diagnose.batches.Batches`. Batches of
        different sizes are all counted in full (each new shape compiles once).
      estimator: "pooled" or "li2018".
      **call: how the model is called: `inputs`, `args`, `kwargs`, `method`, `rngs`, `train_kwargs`,
        `test_kwargs`, and keywords of the model; see `dropbn.diagnose.call.Call`.

    Returns:
      A `Shift`. `.rows`, `.to_csv()`, `.to_json()`, `.plot()`; rich prints it as a table.

    Raises:
      DropbnError: no batches, no BN in the model, statistics that were never updated (mean 0 and
        variance 1 throughout), a layer whose input is not finite, an unknown estimator.

    >>> import flax.linen as nn, jax
    >>> x = 2 * jax.random.normal(jax.random.key(0), (1000, 4))
    >>> model = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)
    >>> remembered = {"mean": jax.numpy.zeros(4), "var": jax.numpy.full(4, 8.0)}
    >>> round(measure(model, {"batch_stats": remembered}, [x]).rows[0]["ratio"], 1)
    0.5
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    called, variables = entry.model_of(model, variables, call)
    observer = observation.Observer(called, variables, Batches(batches, called.call.inputs, once=True), TEST)
    return _against_running(observer, variables, estimator, f"Variance shift ({estimator})")


@entry.holds_state
def predict(
    model: ModelOrPair,
    variables: dict,
    batches: Iterable,
    **call: Any,
) -> Shift:
    """Predicts the shift of every BN layer from the weights alone, before or during training.

    The first pass, in train mode, computes what the running statistics would converge to with these weights.
    The second pass, in test mode, measures against those. The model's own running statistics are not used,
    except those of a BN that training freezes, which keeps them.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test).
      variables: its variables, trained or fresh from `init`; they are not changed. An NNX model holds them:
        leave them out.
      batches: as large as those of training, iterated twice; see `dropbn.diagnose.batches.Batches`.
      **call: as for `measure`.

    Returns:
      A `Shift`, whose `moving_var` is the predicted running variance.

    Raises:
      DropbnError: no batches, no BN in the model, one image as a batch, an input that is not finite, a model
        in which nothing tells training from test mode.

    >>> import flax.linen as nn, jax
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         x = nn.Dropout(0.5)(x, deterministic=not train)
    ...         return nn.BatchNorm()(x, use_running_average=not train)
    >>> x = jax.random.normal(jax.random.key(0), (2000, 16))
    >>> variables = Net().init(jax.random.key(1), x, train=False)
    >>> round(predict(Net(), variables, [x]).rows[0]["ratio"], 1)  # 1 - rate, for inputs of mean 0
    0.5
    """
    called, variables = entry.model_of(model, variables, call)
    data = Batches(batches, called.call.inputs)
    layers = called.layers(variables, data.inputs(data.first))
    called.refuse_one_mode(layers)
    training = observation.Observer(called, variables, data, TRAIN)
    variables = norms.with_statistics(training.known, variables, observation.converged(training, variables))
    testing = observation.Observer(called, variables, data, TEST)
    has_noise = layers.switched_noises or layers.unswitched
    lacking = "" if has_noise else " (no noise was found that training alone has)"
    return _against_running(testing, variables, "pooled", f"Predicted variance shift{lacking}")


def _against_running(observer, variables, estimator, title):
    totals: dict[Path, list[Moments]] = {}
    for found in observer(variables):
        for path, calls in found.items():
            # Between two moves by one call, every other call has made one.
            momentum = observer.layers[path].norm.momentum ** len(calls)
            estimate = functools.partial(ESTIMATORS[estimator], momentum=momentum)
            totals[path] = [*map(estimate, totals[path], calls)] if path in totals else calls
    rows = [
        _row(
            name + f"[call {call}]" * (len(totals[path]) > 1),
            observer.layers[path].norm.epsilon,
            Moments(*(part[index] for part in total)),
            [statistic[index] for statistic in norms.statistics(observer.known, variables, path)],
            path in observer.moving,
        )
        for name, path, index in observer.each()
        for call, total in enumerate(totals[path], 1)
    ]
    return Shift(rows, title)


def _pooled(seen, new, momentum):
    return moments.merge(seen, new)


def _li2018(seen, new, momentum):
    mean, variance = (
        momentum * getattr(seen, moment) + (1 - momentum) * getattr(new, moment)
        for moment in ("mean", "variance")
    )
    count = seen.count + new.count
    return Moments(count, mean, np.zeros_like(mean), variance * count[..., None])


ESTIMATORS = {"pooled": _pooled, "li2018": _li2018}


def _row(name, epsilon, real, running, is_moving):
    moving_mean, moving_var = running
    norms.refuse_broken(name, moving_mean, moving_var)
    if is_moving:  # A layer that training freezes may keep those of initialisation.
        observation.refuse_untrained(name, moving_mean, moving_var)
    if not (np.any(real.variance) and np.any(moving_var)):
        raise DropbnError(
            f"The input of '{name}' does not vary: give more than one image, or look for a dead layer."
        )
    distance = (real.mean - moving_mean) / np.sqrt(moving_var + epsilon)
    return {
        "layer": name,
        "count": int(real.count),
        "moving_var": float(np.mean(moving_var)),
        "real_var": float(np.mean(real.variance)),
        "ratio": float(np.mean(real.variance) / np.mean(moving_var)),
        "mean_shift": float(np.sqrt(np.mean(distance**2))),
    }
