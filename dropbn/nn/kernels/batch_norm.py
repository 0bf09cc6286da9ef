"""Batch normalization of groups, with a derivative that is written out.

The plain form is scale (x - mean) / sqrt(var + epsilon) + bias, differentiated by JAX; tests/nn/test_norm.py
and tests/nn/test_derivatives.py compare the two. A training step of PreResNet-20 reserves 211 MB with
`affine` and 306 MB without it (benchmarks/notes.md). Delete `affine` when XLA takes both sums of a gradient
in one pass by itself, and `normalize` when the plain form is as fast.
"""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching, mlir

from dropbn.nn.kernels import moments


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalize(
    across: tuple | None, epsilon: float, groups: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """y = scale h + bias with h = (x - mean) / sqrt(var + epsilon), each group by its own statistics.

    Its derivative is written out, because that of the formula goes through mean and variance and passes over
    the array more often than it must: with E the mean over a group,
    dy = h (dscale - k E[h dx]) + (dbias - k E[dx]) + k dx and k = scale / sqrt(var + epsilon), so that the
    gradient needs two sums, those of the gradients of bias and scale (Ioffe & Szegedy 2015, section 3), which
    `affine` takes in one pass.

    Args:
      across: (device axis, its indices that share a group, or None where all do); None where none do.
      epsilon: added to the variance.
      groups: (groups, images, ..., channels), float32 at least.
      scale, bias: of shape (channels,), in the dtype of `groups`.

    Returns:
      (y, mean, var); mean and var, the biased one, of shape (groups, channels).
    """
    mean, var = _statistics(across, groups)
    return _scaled(groups, mean, lax.rsqrt(var + epsilon) * scale) + bias, mean, var


@normalize.defjvp
def _derivative(across, epsilon, primals, tangents):
    groups, scale, _ = primals
    d_groups, d_scale, d_bias = tangents
    # Not its formula, so that this rule is that of higher derivatives too.
    y, mean, var = normalize(across, epsilon, *primals)
    inverse = lax.rsqrt(var + epsilon)
    h = _scaled(groups, mean, inverse)
    axes = tuple(range(1, groups.ndim - 1))
    d_mean, along = (_average(across, values.mean(axes)) for values in (d_groups, h * d_groups))
    factor = inverse * scale
    d_y = affine(h, d_scale - factor * along, d_bias - factor * d_mean) + _wide(factor, groups) * d_groups
    return (y, mean, var), (d_y, d_mean, 2 * along / inverse)


def affine(h: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """scale h + bias, whose transpose takes both sums of a gradient g, of h g and of g, in one pass.

    JAX's own transpose takes them apart, for which XLA writes h g to memory on a CPU. So scale and bias are
    broadcast by one primitive. It is linear, and all else is JAX's: derivatives of any order follow.

    Args:
      h: (groups, images, ..., channels).
      scale, bias: (groups, channels).
    """
    # XLA leaves `first` out; for JAX, scale and bias now vary over those axes of jax.shard_map that h does.
    first = lax.stop_gradient(h[:, *(0,) * (h.ndim - 2)])
    scale, bias = (jnp.where(False, first, value) for value in (scale, bias))
    scale, bias = _both_wide_p.bind(scale, bias, like=jax.typeof(h))
    return h * scale + bias


def _both_wide(scale, bias, like):
    return [jnp.broadcast_to(_wide(value, like), like.shape) for value in (scale, bias)]


def _both_sums(gradients, *_, like):
    return moments.both_sums(*map(ad.instantiate_zeros, gradients), tuple(range(1, like.ndim - 1)))


def _both_wide_mapped(given, axes, like):
    return jax.vmap(functools.partial(_both_wide, like=like), axes)(*given), (0, 0)


_both_wide_p = jax.extend.core.Primitive("dropbn_both_wide")
_both_wide_p.multiple_results = True
_both_wide_p.def_impl(_both_wide)
_both_wide_p.def_abstract_eval(lambda scale, bias, like: [like, like])
ad.deflinear2(_both_wide_p, _both_sums)
batching.primitive_batchers[_both_wide_p] = _both_wide_mapped
mlir.register_lowering(_both_wide_p, mlir.lower_fun(_both_wide, multiple_results=True))


def _statistics(across, groups):
    """Mean and variance of shape (groups, channels): the variance within devices and that of their means."""
    if len(groups) == 1:  # Written as an observer of its input writes it, so that XLA computes it once.
        own = jax.tree.map(lambda part: part[None], moments.of(groups[0]))
    else:
        own = jax.vmap(moments.of)(groups)
    mean = _average(across, own.mean)
    return mean, _average(across, own.variance + jnp.square(own.mean - mean))


def _average(across, values):
    """The average over the devices that share a group."""
    return values if across is None else lax.pmean(values, across[0], axis_index_groups=across[1])


def _scaled(groups, mean, factor):
    return (groups - _wide(mean, groups)) * _wide(factor, groups)


def _wide(values, groups):
    return values.reshape(values.shape[0], *(1,) * (groups.ndim - 2), values.shape[-1])
