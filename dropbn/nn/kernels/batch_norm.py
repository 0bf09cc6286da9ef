"""Batch normalization of groups, with a derivative that is written out.

Replaces: scale (x - mean) / sqrt(var + epsilon) + bias, differentiated by JAX. tests/nn/test_norm.py and
tests/nn/test_derivatives.py compare the two.

Brings, on two CPU cores (benchmarks/notes.md): with `normalize`, a training step of PreResNet-20 takes 472
instead of 566 ms. With `affine` it reserves 212 instead of 307 MB. JAX alone reserves as little if scale and
bias are broadcast as one stacked array, but then a step takes 1.04 to 1.07 times as long with jax 0.10 and
1.01 to 1.02 times with 0.12, so `affine` stays for its time.

Delete `affine` when the stacked array is as fast, and `normalize` when the plain form is.
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

    The derivative that JAX makes of this formula goes through mean and variance and passes over the array
    more often than it must. So it is written out here: with E the mean over a group and
    k = scale / sqrt(var + epsilon),

        dy = h (dscale - k E[h dx]) + (dbias - k E[dx]) + k dx.

    The gradient then needs only the two sums that are the gradients of bias and scale (Ioffe & Szegedy 2015,
    section 3), and `affine` takes both in one pass.

    Args:
      across: (device axis, lists of its indices that share a group, or None if all indices share one); None
        if no group spans devices.
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
    # It calls `normalize` instead of the formula, so that higher derivatives follow this rule too.
    y, mean, var = normalize(across, epsilon, *primals)
    inverse = lax.rsqrt(var + epsilon)
    h = _scaled(groups, mean, inverse)
    axes = tuple(range(1, groups.ndim - 1))
    d_mean, along = (_average(across, values.mean(axes)) for values in (d_groups, h * d_groups))
    factor = inverse * scale
    d_y = affine(h, d_scale - factor * along, d_bias - factor * d_mean) + _wide(factor, groups) * d_groups
    return (y, mean, var), (d_y, d_mean, 2 * along / inverse)


def affine(h: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """scale h + bias, whose transpose takes the two sums of a gradient g, over h g and over g, in one pass.

    JAX's own transpose takes one sum after the other, for which XLA writes h g to memory on a CPU. Here one
    primitive broadcasts both scale and bias. It is linear, and the rest is plain JAX, so that derivatives of
    any order follow.

    Args:
      h: (groups, images, ..., channels).
      scale, bias: (groups, channels).
    """
    # XLA drops `first`. For JAX, scale and bias now vary over the same axes of jax.shard_map as h.
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
    """Mean and variance, (groups, channels): the variance within devices plus that of their means."""
    if len(groups) == 1:  # The same formula as in an observer of BN's input, so that XLA computes it once.
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
