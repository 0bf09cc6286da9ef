"""The draws of `jax.random`, bit for bit in every configuration of JAX, in loops that a CPU runs well.

On a CPU, JAX passes over memory once for each round of the threefry hash. Here the rounds are written out, so
that XLA's compiler makes one vectorized loop of the hash and of what turns its bits into a draw.

Replaces: `jax.random.uniform`, `bernoulli` and `normal`; tests/nn/kernels/test_draws.py compares them bit for
bit. For a key of another generator, or a probability that is not float32, `jax.random` itself draws.

Brings: dropout of 2.1 million values takes 3.4 instead of 14.6 ms on two cores (benchmarks/notes.md).

Delete it when XLA's CPU compiler fuses the rounds.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
# The smallest float32 above -1 keeps the argument of a normal draw's inverse error function inside (-1, 1).
_ABOVE_MINUS_1 = np.nextafter(np.float32(-1), np.float32(0))


@functools.partial(jax.jit, static_argnames="shape")
def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.uniform(key, shape, jnp.float32)`: in [0, 1), multiples of 2^-23."""
    return _of_bits(_unit, key, shape)


@functools.partial(jax.jit, static_argnames="shape")
def bernoulli(key: jax.Array, p: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bernoulli(key, p, shape)` as uint8: 1 with probability p, else 0.

    The dtype of `p` decides how many bits are drawn: a Python number is float64 under `jax_enable_x64`.
    XLA's CPU compiler does not vectorize a select on a stored bool: compare as float32 if you need a bool.
    """
    if jnp.result_type(p) != jnp.float32:
        return jax.random.bernoulli(key, p, shape).astype(jnp.uint8)
    return _of_bits(lambda bits: (_unit(bits) < p).astype(jnp.uint8), key, shape)


@functools.partial(jax.jit, static_argnames="shape")
def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.normal(key, shape, jnp.float32)`: sqrt(2) erfinv(u) of a uniform u in (-1, 1)."""
    return _of_bits(_normal, key, shape)


def _unit(bits):
    # 23 bits as the mantissa of a number in [1, 2).
    return lax.bitcast_convert_type(bits >> np.uint32(9) | np.uint32(0x3F800000), jnp.float32) - 1


def _normal(bits):
    u = _unit(bits) * (np.float32(1) - _ABOVE_MINUS_1) + _ABOVE_MINUS_1
    return np.float32(math.sqrt(2)) * lax.erf_inv(jnp.maximum(u, _ABOVE_MINUS_1))


def _of_bits(function, key, shape):
    """`function(jax.random.bits(key, shape, jnp.uint32))`; applies it before the two halves are joined."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    size = math.prod(shape)
    if str(jax.random.key_impl(key)) != "threefry2x32" or size >= 2**32 - 1:
        return function(jax.random.bits(key, shape, jnp.uint32))
    key = jax.random.key_data(key)
    if jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined] # JAX adds it when it is imported.
        low = lax.iota(jnp.uint32, size)
        return function(jnp.bitwise_xor(*_hash(key, jnp.zeros_like(low), low))).reshape(shape)
    half = (size + 1) // 2
    low = lax.iota(jnp.uint32, half)
    high = low + np.uint32(half)
    if size % 2:
        high = jnp.where(high < size, high, 0)
    words = _hash(key, low, high)
    return jnp.concatenate([function(word) for word in words])[:size].reshape(shape)


def _hash(key, x0, x1):
    """Random bits of the counters x0 and x1: threefry-2x32 in 20 rounds (Salmon et al. 2011)."""
    keys = key[0], key[1], key[0] ^ key[1] ^ _PARITY
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(1, 6):
        for left in _ROTATIONS[(group - 1) % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << np.uint32(left) | x1 >> np.uint32(32 - left))
        x0 = x0 + keys[group % 3]
        x1 = x1 + keys[(group + 1) % 3] + np.uint32(group)
    return x0, x1
