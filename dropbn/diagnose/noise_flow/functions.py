"""Operations on descriptions: reshaping, elementwise functions, constants, weights."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dropbn.diagnose.noise_flow import arithmetic
from dropbn.diagnose.noise_flow.values import Path, Value, ancestors, forget, union

Eqn = Any  # A jax.extend.core.JaxprEqn; its variables have a shape and a dtype.
# A standard normal by the trapezoidal rule. The number of nodes is even so that none lies on a kink at 0.
NODES = np.linspace(-8, 8, 1600)
DENSITY = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
# Constants with more elements are not computed.
_LARGEST = 10_000_000
SHAPES = frozenset(
    "reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy pad slice rev "  # noqa: SIM905
    "stop_gradient reduce_precision dynamic_slice sharding_constraint".split()
)
_SELECTIONS = frozenset({"select_n", "max", "min"})
_CHEAP = SHAPES | arithmetic.ELEMENTWISE | {"iota", "reduce_sum", "reduce_max"}


def known(value: ArrayLike | None, name: str = "") -> Value:
    """A constant or a parameter; a large one is known by name only."""
    small = value is not None and np.size(value) <= _LARGEST
    return Value(constant=value if small else None, name=name)


def without_data(eqn: Eqn, values: list[Value]) -> list[Value]:
    """Computes constants whose arguments are all known; a parameter keeps its name."""
    name = next((value.name for value in values if value.name), "")
    outputs = [math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars]
    cheap = eqn.primitive.name in _CHEAP and max(outputs) <= _LARGEST
    if not cheap or any(value.constant is None for value in values):
        return [Value(name=name)] * len(outputs)
    constants, dtype = [value.constant for value in values], eqn.outvars[0].aval.dtype
    return [Value(constant=arithmetic.evaluate(eqn.primitive, eqn.params, constants, dtype), name=name)]


def reshaped(eqn: Eqn, values: list[Value]) -> Value:
    """Moves numbers. Channels stay known if they remain last, or repeat along the last axis."""
    x = values[0]
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    channels = before[-1] if before else 1
    keeps = bool(after) and after[-1] % max(channels, 1) == 0
    if eqn.primitive.name == "transpose":
        keeps = eqn.params["permutation"][-1] == len(before) - 1
    elif eqn.primitive.name != "reshape":
        keeps = bool(after) and after[-1] == channels
    if not x.data:
        return Value(True, union(values), ancestors(values))
    if not keeps:
        paths = {n: dataclasses.replace(path, channels=None, added=None) for n, path in x.paths.items()}
        paths = {n: paths[n] if x.paths[n].channels is None else forget(paths[n]) for n in paths}
        return dataclasses.replace(x, paths=paths, gauss=None, source="", bias="")
    paths = {
        n: dataclasses.replace(
            path,
            channels=None if path.channels is None else fit(path.channels, after[-1]),
            added=None if path.added is None else fit(path.added, after[-1]),
        )
        for n, path in x.paths.items()
    }
    return dataclasses.replace(x, paths=paths)


def elementwise(eqn: Eqn, values: list[Value]) -> Value:
    """Applies a function to each element; finds its distribution and whether m is still a factor."""
    data = [value for value in values if value.data]
    result = _apply(eqn, values, [1] * len(values))

    @functools.cache  # Many noises of one network come by the same arguments.
    def degree_of(carries, is_positive):
        # Functions of degree 1 in m keep the factor m; those of degree 0, such as sign, lose the noise.
        factors = (2,) if is_positive else (2, -1)
        scaled = [(k, _apply(eqn, values, [k if c else 1 for c in carries])) for k in factors]
        fits = (d for d in (1, 0) if all(np.allclose(y, result * k**d, rtol=1e-3) for k, y in scaled))
        return next(fits, None)

    merged = {}
    for noise, path in union(values).items():
        carriers = [value.paths.get(noise) for value in values]
        degree = None
        is_factor = result is not None and path.is_factor
        if is_factor and all(carrier is None or carrier.degree == 1 for carrier in carriers):
            degree = degree_of(tuple(carrier is not None for carrier in carriers), path.is_positive)
        if degree == 0:
            continue
        keeps = eqn.primitive.name in ("add", "sub", "neg") and len(data) == 1
        is_mixed = eqn.primitive.name in _SELECTIONS and any(noise not in value.paths for value in data)
        merged[noise] = dataclasses.replace(
            path,
            degree=degree,
            added=path.added if keeps else None,
            is_whole=path.is_whole and not (is_mixed and degree is None),
        )
    same = all(value.gauss is not None and value.source == data[0].source for value in data)
    known = same and all(value.data or value.constant is not None for value in values)
    gauss = result if known and result is not None and np.ndim(result) == 2 else None
    if gauss is not None:
        merged = {n: with_moments(f, gauss) if f.degree == 1 else f for n, f in merged.items()}
    single = len(data) == 1
    bias = next((value.name for value in values if value.name.rpartition("/")[2] == "bias"), "")
    is_biased = single and eqn.primitive.name == "add" and data[0].origin == "weights"
    return Value(
        True,
        merged,
        ancestors(values),
        gauss,
        data[0].source if gauss is not None else "",
        origin=data[0].origin if single else "",
        bias=bias if is_biased else "",
    )


def _apply(eqn, values, factors):
    """The function of its arguments times `factors`, at the nodes, (nodes, channels); None if it fails.

    Arbitrary numbers replace an argument of unknown distribution: they suffice to tell whether the function
    is homogeneous.
    """
    arguments = []
    for i, (value, factor, var) in enumerate(zip(values, factors, eqn.invars, strict=True)):
        if value.data:
            x = _some_numbers(i) if value.gauss is None else value.gauss
        else:
            x = _by_channel(value.constant, eqn.outvars[0].aval.shape)
            if x is None:
                return None
        is_bool = var.aval.dtype == bool
        arguments.append(x > 0 if is_bool and x.dtype != bool else x if is_bool else factor * x)
    try:
        arguments = [*np.broadcast_arrays(*arguments)]
    except ValueError:
        return None
    params = tuple(sorted(eqn.params.items()))
    if max(x.size for x in arguments) > NODES.size:
        return _computed(eqn.primitive, params, arguments)
    described = ((x.tobytes(), x.dtype, x.shape) for x in arguments)
    return _computed_once(eqn.primitive, params, *described)


@functools.lru_cache
def _some_numbers(argument):
    return np.roll(NODES, 211 * argument)[:, None]


# The blocks of a network repeat the same computations.
@functools.lru_cache(maxsize=512)
def _computed_once(primitive, params, *described):
    arguments = [np.frombuffer(data, dtype).reshape(shape) for data, dtype, shape in described]
    return _computed(primitive, params, arguments)


def _computed(primitive, params, arguments):
    try:
        arrays = [np.asarray(x, bool if x.dtype == bool else np.float32) for x in arguments]
        found = arithmetic.evaluate(primitive, dict(params), arrays)
        return np.asarray(found, bool if found.dtype == bool else np.float64)
    except (TypeError, ValueError):
        return None


def _by_channel(constant, shape):
    """A constant as (1, channels or 1), 0.7 if unknown; None if it varies along another axis."""
    if constant is None:
        return np.full((1, 1), 0.7)
    constant = np.asarray(constant)
    if shape and constant.size == shape[-1] and (constant.ndim == 0 or constant.shape[-1] == constant.size):
        return constant.reshape(1, -1)
    is_one = constant.size and np.all(constant == constant.flat[0])
    return constant.flat[0].reshape(1, 1) if is_one else None


def weights_of(eqn: Eqn, kernel: ArrayLike, kernel_is_right: bool) -> np.ndarray | None:
    """|w| over taps, (groups, inputs of a group, outputs of a group); None for unusual layouts.

    An input has the same second moment at every tap, so the variance that its noise adds to an output depends
    on its weights w by |w| = sqrt(sum of w^2) alone.
    """
    kernel = np.asarray(kernel, np.float64)
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        (left, right), batch = numbers
        own, others = (right, left) if kernel_is_right else (left, right)
        rank = len(eqn.invars[0 if kernel_is_right else 1].aval.shape)
        if any(batch) or len(own) != 1 or others[0] != rank - 1:
            return None
        return np.moveaxis(kernel, own[0], 0).reshape(1, kernel.shape[own[0]], -1)
    channels_last = numbers.lhs_spec[1] == numbers.out_spec[1] == kernel.ndim - 1
    if not (kernel_is_right and channels_last and eqn.params["batch_group_count"] == 1):
        return None
    groups = eqn.params["feature_group_count"]
    outputs, inputs, *taps = numbers.rhs_spec
    kernel = np.transpose(kernel, (*taps, inputs, outputs))
    weights = np.sqrt(np.square(kernel).sum(tuple(range(len(taps)))))
    return weights.reshape(len(weights), groups, -1).swapaxes(0, 1)


def fit(values: np.ndarray, size: int) -> np.ndarray | None:
    """Values for `size` channels: one for all, one for each, or repeated as flattening repeats channels."""
    number = values.shape[-1]
    if size % number:
        return None
    return np.tile(values, (*(1,) * (values.ndim - 1), size // number))


def total(parts: list[np.ndarray | None], size: int) -> np.ndarray | None:
    """The sum of values by channel, (size,); None if one is unknown."""
    found = np.zeros(size)
    for part in parts:
        if part is None:
            return None
        found = found + part
    return found


def with_moments(path: Path, gauss: np.ndarray | None) -> Path:
    """The path with the mean and variance of the array that its noise multiplies."""
    if gauss is None or gauss.dtype == bool:
        return path
    means = DENSITY @ gauss
    variances = DENSITY @ np.square(gauss) - means**2
    return dataclasses.replace(path, mean=float(means.mean()), variance=float(variances.mean()))
