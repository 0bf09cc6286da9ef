"""The variance shift of any Linen model, measured.

In training, BN divides by a standard deviation that dropout has inflated, and remembers it. In test
mode dropout is off, the real variance is smaller, and BN divides by the remembered one all the same.
The shift of a BN layer is real / moving variance: 1 without a shift, below 1 where dropout precedes BN
(Delta of Li et al. 2018, eq. 8 and 12).
"""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn import modes, moments
from dropbn.errors import DropbnError, unknown
from dropbn.moments import Moments
from dropbn.results import Result


@dataclasses.dataclass(frozen=True)
class Shift(Result):
    """The shift of every BN layer, in network order.

    Each row holds, variances and means being averages over the layer's channels:
      layer: path of the BN module, joined by "/"; "[i]" marks the i-th of layers stacked by `nn.scan`.
      count: values per channel behind real_var.
      moving_var: running variance (biased, as Flax keeps it).
      real_var: variance of the layer's input in test mode (biased).
      ratio: real_var / moving_var.
      mean_shift: RMS over channels of (real mean - running mean) / sqrt(running variance + epsilon).
    """

    def most_shifted(self, number: int = 3) -> list[dict]:
        """The rows whose ratio is farthest from 1, by max(ratio, 1 / ratio)."""
        return sorted(self.rows, key=lambda row: -max(row["ratio"], 1 / row["ratio"]))[:number]

    def plot(self, path=None, label: str = "shift"):
        """max(ratio, 1 / ratio) against the BN layer's index, as Li et al. (2018) Fig. 4."""
        from dropbn import plots

        return plots.shift({label: self.rows}, path)


def measure(
    model: nn.Module,
    variables: dict,
    batches: Iterable,
    *,
    estimator: str = "pooled",
    inputs: Any = None,
    **kwargs,
) -> Shift:
    """Measures the shift of every BN layer of a trained model, in test mode with statistics frozen.

    Two estimators of the real variance:

    - "pooled": the population variance of each layer's input over all batches, exact for any split of
      the data into batches, on any number of devices.
    - "li2018": the moving average of batch variances, by the layer's own momentum, as Li et al. (2018,
      section 4) do; give it augmented training data. The first batch starts the average, so that the
      result owes nothing to the running variance it is compared with.

    Neither applies Bessel's correction, as Flax's running variance does not; the papers' (PyTorch's)
    variances are larger by m / (m - 1) for m values per channel and batch.

    Args:
      model: any Linen module; see `dropbn.modes` for what can be reached.
      variables: its trained variables; they are not changed.
      batches: arrays, tuples or dicts. Batches of different sizes are all counted in full (each new
        shape compiles once).
      estimator: "pooled" or "li2018".
      inputs: which part of a batch the model gets: a key, an index or a function of the batch. By
        default the array itself, "image" of a dict, the first of a tuple.
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      A `Shift`. `.rows`, `.to_csv()`, `.to_json()`, `.plot()`; rich prints it as a table.

    Raises:
      DropbnError: no batches, no BN in the model, statistics that were never updated (mean 0 and
        variance 1 throughout), a layer whose input is not finite, an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    if hasattr(batches, "shape") or isinstance(batches, dict):
        raise DropbnError("shift.measure takes an iterable of batches: put a single one in a list.")
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise DropbnError("No batches were given to measure the shift on.")
    layers, empty = _layers(model, variables, select(first, inputs), kwargs)

    def observe(norm, x):
        seen, new = norm.get_variable("batch_stats", _MOMENTS), moments.of(x, norm.axis)
        both = moments.merge(seen, new)  # of a layer that is called again
        merged = jax.tree.map(lambda a, b: jnp.where(seen.count > 0, a, b), both, new)
        norm.put_variable("batch_stats", _MOMENTS, Moments(*merged))

    @jax.jit
    def moments_of(variables, x):
        stats = unflatten_dict(_flat_stats(variables) | empty)
        variables = {**variables, "batch_stats": stats}
        _, stats = modes.apply(model, variables, x, mode=modes.TEST, observe=observe, **kwargs)
        flat = flatten_dict(stats)
        return {path: flat[(*path, _MOMENTS)] for path in layers}

    totals, pending = {}, None
    for batch in itertools.chain([first], batches, [None]):
        dispatched = None if batch is None else moments_of(variables, select(batch, inputs))
        # Fetched only now, while the device works on the batch just dispatched.
        for path, new in (pending or {}).items():
            new = Moments(*(np.asarray(part, np.float64) for part in new))
            seen = totals.get(path)
            totals[path] = ESTIMATORS[estimator](seen, new, layers[path].momentum) if seen else new
        pending = dispatched
    running = _flat_stats(variables)
    rows = [
        _row(path, index, totals[path], running, layers[path]) for path, index in _in_order(layers, totals)
    ]
    return Shift(rows, f"Variance shift ({estimator})")


# The leaf beside mean and var in which a layer's moments ride: a collection that the model does not know
# would vanish under nn.scan.
_MOMENTS = modes.OURS + "moments"


class _Layer(NamedTuple):
    """What tracing tells of a BN layer; `scan` counts the nn.scans begun before it."""

    momentum: float
    epsilon: float
    scan: int


def _layers(model, variables, x, kwargs):
    """The model's BN layers by path, in the order of the trace, and empty moments for each of them."""
    layers, empty, scans = {}, {}, []
    stats = _flat_stats(variables)

    def track(run, args, kwargs, context):
        if type(context.module).__name__.startswith("Scan"):  # as nn.scan names the class that it makes
            scans.append(context.module)
        return run(*args, **kwargs)

    def observe(norm, x):
        layers.setdefault(norm.path, _Layer(norm.momentum, norm.epsilon, len(scans)))
        stacked, own = stats[(*norm.path, "mean")].shape, norm.get_variable("batch_stats", "mean").shape
        if stacked[len(stacked) - len(own) :] != own:
            raise DropbnError(
                f"'{'/'.join(norm.path)}' is stacked along another axis than the first; give its "
                "transformation variable_axes={'batch_stats': 0} to measure it."
            )
        zeros = np.zeros(stacked, np.float32)
        count = np.zeros(stacked[: len(stacked) - len(own)], np.float32)
        empty[(*norm.path, _MOMENTS)] = Moments(count, zeros, zeros, zeros)

    def trace(variables, x):
        return modes.apply(model, variables, x, mode=modes.TEST, observe=observe, **kwargs)

    with nn.intercept_methods(track):
        jax.eval_shape(trace, variables, x)
    if not layers:
        raise DropbnError("The model has no batch normalization that dropbn.modes can reach.")
    return layers, empty


def _flat_stats(variables):
    return flatten_dict(flax.core.unfreeze(variables.get("batch_stats", {})))


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


def _in_order(layers, totals):
    """(path, index) of every layer; nn.scan stacks layers, and a stack runs through all its BNs in turn."""
    for (_, stack), paths in itertools.groupby(layers, lambda p: (layers[p].scan, totals[p].count.shape)):
        paths = list(paths)
        for index in np.ndindex(stack):
            yield from ((path, index) for path in paths)


def _row(path, index, total, running, layer):
    name = ("/".join(path) or ".") + "".join(f"[{i}]" for i in index)
    count, real_mean, real_var = (part[index] for part in (total.count, total.mean, total.variance))
    moving_mean, moving_var = (
        np.asarray(running[(*path, key)], np.float64)[index] for key in ("mean", "var")
    )
    if not (np.all(np.isfinite(real_mean)) and np.all(np.isfinite(real_var))):
        raise DropbnError(f"The input of '{name}' is not finite: look for NaN in the batches or weights.")
    if np.all(moving_mean == 0) and np.all(moving_var == 1):
        raise DropbnError(
            f"The running statistics of '{name}' are still at mean 0, variance 1: train the model first, "
            "or restore its batch_stats."
        )
    if not (np.any(real_var) and np.any(moving_var)):
        raise DropbnError(
            f"The input of '{name}' does not vary: give more than one image, or look for a dead layer."
        )
    distance = (real_mean - moving_mean) / np.sqrt(moving_var + layer.epsilon)
    return {
        "layer": name,
        "count": int(count),
        "moving_var": float(np.mean(moving_var)),
        "real_var": float(np.mean(real_var)),
        "ratio": float(np.mean(real_var) / np.mean(moving_var)),
        "mean_shift": float(np.sqrt(np.mean(distance**2))),
    }


def select(batch, inputs=None):
    """The part of a batch that a model gets; see `measure`."""
    if callable(inputs):
        return inputs(batch)
    if inputs is not None:
        return batch[inputs]
    if isinstance(batch, dict):
        if "image" not in batch:
            raise DropbnError(f"A batch with keys {sorted(batch)}: say by inputs= which one the model gets.")
        return batch["image"]
    return batch[0] if isinstance(batch, (tuple, list)) else batch
