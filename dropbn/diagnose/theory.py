"""Closed forms of the variance shift: pure functions of numbers and arrays.

A noise y = x * m with E[m] = 1 and Var[m] = s2 leaves means alone and adds s2 E[x^2] to a variance, from
which everything here follows. A ratio is Var_test / Var_train of the same quantity, Li's Delta, at most 1.

Symbols: c and v are the mean and variance of the noise's input; `dropbn.nn.laws` gives the s2 of a noise;
keep is 1 - rate of dropout.
"""

import math

import jax
import numpy as np
from numpy.typing import ArrayLike

from dropbn.errors import DropbnError
from dropbn.nn.laws import Real
from dropbn.results import Result


def direct(s2: Real, c: Real = 0.0, v: Real = 1.0) -> Real:
    """The ratio right behind a noise: v / (v + s2 (c^2 + v)).

    Li et al. (2018), eq. 8, written for any noise: 1 - rate for dropout at c = 0, 3 / (3 + beta^2) for Uout
    (eq. 15).

    >>> from dropbn.nn import laws
    >>> direct(laws.Dropout(0.5).s2), round(direct(laws.Uout(0.1).s2), 4)
    (0.5, 0.9967)
    """
    return v / (v + s2 * (c**2 + v))


def through_weights(s2: Real, d_cos2: Real, rho: Real = 0.0, c: Real = 0.0, v: Real = 1.0) -> Real:
    """The ratio of a weighted sum of d noisy inputs: (v + r) / (v + r + s2 (c^2 + v)), r = v rho (k - 1).

    Li et al. (2018), eq. 12, written for any noise: the inputs share mean, variance and correlation.

    Args:
      s2: Var[m].
      d_cos2: k = d cos^2 theta = (sum w)^2 / sum w^2, see `weight_statistics`. At 1, or at rho = 0, the ratio
        is `direct`.
      rho: correlation of the inputs.
      c, v: their mean and variance.
    """
    shared = v * rho * (d_cos2 - 1)
    return (v + shared) / (v + shared + s2 * (c**2 + v))


def added_variance(s2: Real, weights: ArrayLike, second_moments: ArrayLike) -> Real:
    """What noise adds to the variance of sum_i w_i x_i: s2 sum_i w_i^2 E[x_i^2].

    The law of total variance: exact for masks that are independent between the inputs, whatever the inputs'
    means and correlations.

    Args:
      s2: Var[m].
      weights: (inputs,) or (inputs, outputs).
      second_moments: E[x_i^2], (inputs,).

    Returns:
      A number, or (outputs,).
    """
    return s2 * np.asarray(second_moments) @ np.square(weights)


def largest_s2(bound: Real, c: Real = 0.0, v: Real = 1.0, d_cos2: Real = 1.0, rho: Real = 0.0) -> Real:
    """The largest Var[m] for which `through_weights` (at its defaults `direct`) is at least `bound`.

    `of_s2` of a class of `dropbn.nn.laws` makes it a rate or a beta.

    Raises:
      DropbnError: a bound outside (0, 1].
    """
    return v * (1 + rho * (d_cos2 - 1)) * _excess(bound) / (c**2 + v)


def largest_s2_from(bound: Real, s2: Real, ratio: Real) -> Real:
    """The largest Var[m] that keeps a ratio at `bound` or above, given the `ratio` at Var[m] = s2.

    s2 (1 / bound - 1) / (1 / ratio - 1): what a noise adds, relative to the variance without it, is
    1 / ratio - 1, and it is proportional to s2.

    Raises:
      DropbnError: a bound or a ratio outside (0, 1]; a ratio of 1, from which no bound follows.
    """
    if ratio == 1:
        raise DropbnError("At ratio=1 the noise adds nothing, so every s2 would do: give a ratio below 1.")
    return s2 * _excess(bound) / _excess(ratio)


def _excess(ratio):
    """Var_train / Var_test - 1."""
    if not 0 < ratio <= 1:
        raise DropbnError(f"A ratio of variances lies in (0, 1], got {ratio}.")
    return 1 / ratio - 1


def predropout(s2: Real, weights: np.ndarray, mean: ArrayLike, covariance: np.ndarray) -> Real:
    """The ratio of W D(x), noise before a weight layer (Kim et al. 2023, Proposition 2), for each output.

    Args:
      s2: Var[m].
      weights: (inputs, outputs).
      mean: E[x], (inputs,).
      covariance: Cov[x], (inputs, inputs).
    """
    clean = np.einsum("io,ij,jo->o", weights, covariance, weights)
    return clean / (clean + added_variance(s2, weights, np.diag(covariance) + np.square(mean)))


def postdropout(s2: Real, weights: np.ndarray, mean: ArrayLike, covariance: np.ndarray) -> Real:
    """The ratio of D(W x), noise after the weight layer; arguments as `predropout`.

    Below `predropout` where sum_j sum_{k != j} w_j w_k E[x_j x_k] > 0 (Proposition 2).
    """
    clean = np.einsum("io,ij,jo->o", weights, covariance, weights)
    return direct(s2, np.asarray(mean) @ weights, clean)


def branch(keep: Real) -> Real:
    """The ratio of a branch with dropout in P5, P6 or P7: (pi - 1) / (pi / keep - 1).

    Kim et al. (2023), Proposition 3: "bn relu conv" of a Gaussian with zero-mean weights.
    """
    return (math.pi - 1) / (math.pi / keep - 1)


def residual(keep: Real, var_x0: Real, gammas2: ArrayLike) -> Real:
    """The ratio behind the addition of the last of some blocks with dropout in P5, P6 or P7.

    (V + (pi - 1) / pi G) / (V + (pi / keep - 1) / pi G) with G = sum of gamma^2 (Kim et al. 2023,
    Proposition 4); above `branch`, because the skip carries no noise of its own.

    Args:
      keep: 1 - rate.
      var_x0: V, variance of the first block's input.
      gammas2: squares of the last BN's scales, of each block.
    """
    total = np.sum(gammas2)
    return (var_x0 + (math.pi - 1) / math.pi * total) / (var_x0 + (math.pi / keep - 1) / math.pi * total)


def before_pooling(s2: Real, var_pooled: Real, second_moments: ArrayLike) -> Real:
    """The variance of mean_a m_a x_a, noise before global average pooling (H4).

    Var[mean x] + s2 / A^2 sum_a E[x_a^2] over A positions (Kim et al. 2023, Proposition 5).
    """
    second_moments = np.asarray(second_moments)
    return var_pooled + s2 * second_moments.sum(-1) / second_moments.shape[-1] ** 2


def after_pooling(s2: Real, var_pooled: Real, mean_pooled: Real) -> Real:
    """The variance of m mean_a x_a, noise after global average pooling (H5): V + s2 (V + c^2)."""
    return var_pooled + s2 * (var_pooled + mean_pooled**2)


def weight_statistics(params: dict) -> Result:
    """How far the filters of every weight layer are from zero sum (Li et al. 2018, eq. 13, Table 1, Fig. 3).

    cos^2 theta = (sum w)^2 / (d sum w^2) with theta the angle between a filter, flattened with its spatial
    taps, and (1, ..., 1); d is its number of weights. Means over a layer's filters.

    Args:
      params: of any Linen model; every leaf named "kernel", of shape (..., inputs, outputs), is a layer.

    Returns:
      A row for each layer, in the order of its names: `layer`, `fan_in` (d), `cos2`, `d_cos2`.

    Raises:
      DropbnError: no kernel in `params`.
    """
    rows = []
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        *parents, leaf = (getattr(key, "key", str(key)) for key in path)
        if leaf != "kernel":
            continue
        filters = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        cos2 = filters.sum(0) ** 2 / (len(filters) * np.square(filters).sum(0))
        layer = {"layer": "/".join(parents), "fan_in": len(filters)}
        rows.append(layer | {"cos2": float(cos2.mean()), "d_cos2": float(len(filters) * cos2.mean())})
    if not rows:
        raise DropbnError("These parameters hold no 'kernel': give a model's params.")
    return Result(rows, "Weights: cos^2 theta to (1, ..., 1), means over filters")
