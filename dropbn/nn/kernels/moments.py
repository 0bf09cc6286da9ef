"""Count, mean and variance of arrays, merged exactly over batches.

The mean of the variances of groups is not the variance of the whole, because it leaves out how far the means
of the groups lie apart. Moments keep the sum of squared deviations instead and merge it with the formula of
Chan, Golub and LeVeque (1979, "Updating formulae and a pairwise algorithm").

Replaces: `jnp.mean` and `jnp.var` of all batches together; tests/nn/kernels/test_moments.py compares with
NumPy in float64.

Brings: batches may come one after another, and each is passed over once. With `both_sums`, the moments of a
(128, 32, 32, 16) array take 0.39 instead of 2.55 ms on a CPU (benchmarks/notes.md).

Delete `both_sums` when XLA's CPU compiler takes two `jnp.sum` over several axes in one pass that is as fast;
the rest stays, because it merges batches.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropbn.errors import DropbnError

Array = jax.Array | np.ndarray


class Moments(NamedTuple):
    """Moments per channel: a pytree of arrays (of JAX in a traced function, of NumPy or floats outside).

    Attributes:
      count: number of values per channel, shape ().
      origin: a value near the data, shape (channels,). float32 keeps deviations from it exact, which a
        large mean (1e5, say) would swallow.
      offset: mean - origin, shape (channels,).
      m2: sum of squared deviations from the mean, shape (channels,).
    """

    count: Array  # type: ignore[assignment] # It hides tuple.count.
    origin: Array
    offset: Array
    m2: Array

    @property
    def mean(self) -> Array:
        return self.origin + self.offset

    @property
    def variance(self) -> Array:
        """Population variance m2 / count (biased, as Flax keeps it)."""
        return self.m2 / self.count[..., None]


def of(x: jax.Array, axis: int | tuple[int, ...] = -1, mask: jax.Array | None = None) -> Moments:
    """Moments of `x` per channel, in float32 at least, in one pass after a glance at the first example.

    The origin is the mean of the first example. Among n examples it lies within sqrt(n) standard deviations
    of the whole mean. So subtracting `count * offset^2` costs the variance at most a factor n of its float32
    precision, whatever the data, and in practice nothing.

    Args:
      x: array with examples along its first axis, such as (batch, ..., channels).
      axis: the channel axis or axes, as in `flax.linen.BatchNorm`.
      mask: True where a value counts, as in `flax.linen.BatchNorm`; it broadcasts to the shape of `x`, and is
        the same for all channels.

    Returns:
      Moments whose channel shape is that of `x` along `axis`.

    Raises:
      DropbnError: a mask that may differ between channels.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    channel_axes = {a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)}
    axes = tuple(a for a in range(x.ndim) if a not in channel_axes)
    if mask is not None:
        return _masked(x, axes, mask)
    origin = jnp.mean(x if 0 in channel_axes else x[:1], axes, keepdims=True)
    count = jnp.asarray(x.size / max(origin.size, 1), x.dtype)
    deviation = x - origin
    sums = both_sums(deviation, jnp.square(deviation), axes)
    offset, m2 = sums[0] / count, sums[1]
    m2 = m2 - count * jnp.square(offset)
    return Moments(count, origin.reshape(offset.shape), offset, jnp.maximum(m2, 0))


def _masked(x, axes, mask):
    """Moments of the values that a mask leaves, around their mean."""
    mask = jnp.asarray(mask, bool)
    shape = (1,) * (x.ndim - mask.ndim) + mask.shape
    if any(shape[axis] > 1 for axis in range(x.ndim) if axis not in axes):
        raise DropbnError(
            f"A mask of shape {mask.shape} differs between the channels of a batch normalization's input of "
            f"shape {x.shape}: give it length 1 along the channels."
        )
    mask = jnp.broadcast_to(mask.reshape(shape), [x.shape[a] if a in axes else 1 for a in range(x.ndim)])
    count = jnp.sum(mask, dtype=x.dtype)
    origin = jnp.mean(x, axes, where=mask, keepdims=True)
    deviation = x - origin
    offset = jnp.mean(deviation, axes, where=mask)
    m2 = jnp.sum(jnp.square(deviation), axes, where=mask) - count * jnp.square(offset)
    return Moments(count, origin.reshape(offset.shape), offset, jnp.maximum(m2, 0))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def both_sums(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Sums of two arrays of one shape and dtype over ascending `axes`, in one pass."""
    if len(axes) == 1:  # On a CPU two passes are faster.
        return x.sum(axes), y.sum(axes)
    # On a CPU, one axis after the other is several times faster than all at once. The axis of the examples
    # comes last, so that devices and cores share them.
    steps = [(axis,) for axis in reversed(axes)] if jax.default_backend() == "cpu" else [axes]
    zero = jnp.zeros((), x.dtype)
    for step in steps:
        x, y = lax.reduce((x, y), (zero, zero), _add, step)
    return x, y


@both_sums.defjvp
def _derivative(axes, primals, tangents):
    # JAX's derivative of `lax.reduce` is a tree of slices, and fails if one of the two has no tangent.
    return both_sums(*primals, axes), tuple(tangent.sum(axes) for tangent in tangents)


def _add(a, b):
    return a[0] + b[0], a[1] + b[1]


def over(found: Moments, axis_name: str | tuple[str, ...]) -> Moments:
    """Moments of the union of the values along a named axis, exactly as `merge`."""
    origin = lax.pmean(found.origin, axis_name)
    count = lax.psum(found.count, axis_name)
    distance = (found.origin - origin) + found.offset
    offset = lax.psum(found.count * distance, axis_name) / count
    m2 = lax.psum(found.m2 + found.count * jnp.square(distance - offset), axis_name)
    return Moments(count, origin, offset, m2)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the values behind `a` and `b` together, in the arithmetic of its arguments.

    With delta = mean_b - mean_a and n = n_a + n_b: mean = mean_a + delta n_b / n and
    M2 = M2_a + M2_b + delta^2 n_a n_b / n. Channels may have several axes, as `flax.linen.scan` stacks them.
    """
    count = a.count + b.count
    delta = (b.origin - a.origin) + (b.offset - a.offset)
    share = (b.count / count)[..., None]
    return Moments(
        count,
        a.origin,
        a.offset + delta * share,
        a.m2 + b.m2 + delta * delta * a.count[..., None] * share,
    )
