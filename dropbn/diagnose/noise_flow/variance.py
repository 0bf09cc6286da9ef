"""The variance that noises add, and the variance of a BN's input without them."""

import numpy as np

from dropbn.diagnose import theory
from dropbn.diagnose.noise_flow import functions
from dropbn.diagnose.noise_flow.marks import Norm
from dropbn.diagnose.noise_flow.values import Path, Way
from dropbn.diagnose.noises import Noise

_WAYS = {Way.DIRECT: "directly", Way.WEIGHTS: "through weights", Way.SKIP: "through a skip"}


def added(
    noise: Noise | None,
    path: Path,
    gauss: np.ndarray | None,
    weights: np.ndarray | None = None,
    taken: np.ndarray | bool = True,
) -> np.ndarray | None:
    """The variance that a noise adds to an array, or to its weighted sums.

    Args:
      noise: the noise; None for a supposed one on the output of a BN.
      path: its path to the array.
      gauss: the array, see `Value.gauss`; None if unknown.
      weights: of the sums, see `functions.weights_of`.
      taken: at which nodes the array is taken, (nodes, channels or 1).

    Returns:
      a = Var[m] E[x^2] + 2 Cov[m, n] E[x] + Var[n], (channels,); with weights sum_i w_i^2 a_i, (outputs,).
      None if it cannot be told, as where E[m] is not 1.
    """
    affine = noise.affine if noise else None
    if noise is None or affine is None or affine.m != 1 or gauss is None:
        return None
    if path.degree == 1:
        second = affine.var_m * np.square(gauss) + 2 * affine.cov * gauss + affine.var_n
        second = functions.DENSITY @ (second * taken)
        if path.channels is not None:
            second = second * path.channels
    elif path.way == Way.DIRECT and path.added is not None:
        second = path.added
    else:
        return None
    if weights is None:
        return second
    groups, inputs, _ = weights.shape
    second = None if noise.is_shared else functions.fit(second, groups * inputs)
    if second is None:
        return None
    by_group = zip(weights, second.reshape(groups, inputs), strict=True)
    return np.concatenate([theory.added_variance(1, *group) for group in by_group])


def variance_without_noise(norm: Norm, carried: list[tuple[Noise, Path]]) -> tuple[np.ndarray | None, str]:
    """The variance of a BN's input without the noise that reaches it, from the BN's running statistics.

    V and m are the running variance and mean, taken with the noise on. Directly behind a noise the input is
    x * m, so v = (V - s2 c^2) / (1 + s2) with c = m; a noise y = m x + n has moments of its own for it (see
    `dropbn.nn.laws.Affine`). Through weights the noise has added s2 sum_i w_i^2 E[x_i^2]: E[x^2]
    follows from scale and bias of the BN before, if its output is taken to be Gaussian; zero padding is left
    out. A channel that would keep less than a hundredth of V keeps V instead.

    Args:
      norm: the BN.
      carried: the noises that reach it, each with its path.

    Returns:
      The variance, (channels,), and how it was found; None and the reason if it cannot be told.
    """
    if not carried:
        return norm.var, "no noise reaches it"
    if norm.calls != 1:
        return None, "its statistics are not those of one call"
    if norm.var is None or norm.mean is None:
        return None, "its statistics are not at hand (stacked by nn.scan, or channels that are not last)"
    variance, ways = norm.var, set()
    for noise, path in carried:
        if path.way == Way.DIRECT and path.added is None:
            if path.degree != 1 or noise.affine is None:
                return None, "what reaches it is not its input times the noise"
            variance = _directly(variance, norm.mean, noise.affine, path.channels)
            ways.add(_WAYS[Way.DIRECT])
    for _, path in carried:
        if path.way != Way.DIRECT or path.added is not None:
            share = None if path.added is None else functions.fit(path.added, len(variance))
            if share is None:
                return None, "the noise comes through more than a BN, an activation and one weight layer"
            variance = variance - share
            ways.add(_WAYS[path.way])
    # A small difference of large numbers comes from errors of the running statistics, or a dead channel.
    kept = variance <= 0.01 * norm.var
    if np.all(kept):
        return None, "its running variance is not above what the noise alone would bring"
    how = " and ".join(sorted(ways)) + (
        f"; {kept.sum()} of its {kept.size} channels kept" if kept.any() else ""
    )
    return np.where(kept, norm.var, variance), how


def _directly(variance, mean, affine, channels):
    """v of Var[y] = Var[m] (v + c^2) + 2 Cov[m, n] c + Var[n] + E[m]^2 v, where E[y] = E[m] c + E[n]."""
    c = (mean - affine.n) / affine.m
    clean = variance - affine.var_m * c**2 - 2 * affine.cov * c - affine.var_n
    clean = clean / (affine.m**2 + affine.var_m)
    return clean if channels is None else np.where(channels, clean, variance)
