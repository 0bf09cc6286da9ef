"""Dropout, with the masks of `flax.linen.Dropout`."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, unknown
from dropbn.nn import laws
from dropbn.nn.kernels import draws
from dropbn.nn.noise.base import Multiplicative


class Dropout(Multiplicative):
    """Dropout: m = mask / keep with P(mask = 1) = keep = 1 - rate (Srivastava et al. 2014).

    s2 = rate / (1 - rate). It draws exactly the masks of `flax.linen.Dropout` for the same key and module
    path, for keys of any generator and in any configuration of JAX. At rate 1 the output is zero and its
    gradient is zero, not NaN. A traced rate below 0 drops nothing and still divides by 1 - rate; one above 1
    drops everything, and the output is 0, or NaN if `restore` is "sqrt_keep".

    Attributes:
      rate: probability of dropping a unit, in [0, 1]; a Python number or a traced scalar.
      broadcast_dims: dimensions that share one draw; (1, 2) drops whole channels of NHWC images.
      deterministic: True switches the noise off.
      rng_collection: name of the random stream.
      scale_at: "train" divides kept units by keep in training (inverted dropout). "test" leaves them
        unscaled in training and multiplies by keep in test mode, as the original dropout did. Both give
        batch normalization the same shift ratio, because BN is blind to a constant factor.
      restore: a factor in training that restores the input's variance. "sqrt_keep" multiplies by sqrt(keep),
        which is right if the mean c is 0; then E[m] = sqrt(keep). "exact" shrinks around each channel's mean,
        c + (y - c) sqrt(v / (v + s2 (c^2 + v))), with c and v of the device's batch.

    Raises:
      DropbnError: a rate outside [0, 1], an unknown `scale_at` or `restore`, `restore` with scale_at="test".
    """

    rate: float
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    scale_at: str = "train"
    restore: str = ""

    def __post_init__(self) -> None:
        check_scales(self.scale_at, self.restore)
        super().__post_init__()

    @property
    def law(self) -> laws.Dropout:
        return laws.Dropout(self.rate)

    @property
    def keep(self) -> jax.Array:
        return keep_of(self.law)

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return dropout_at_test(self.law, inputs, self.scale_at)

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return dropout(self.law, inputs, rng, shape, self.scale_at, self.restore)


def check_scales(scale_at: str, restore: str) -> None:
    """Raises a `DropbnError` unless `Dropout` knows these two."""
    if scale_at not in ("train", "test"):
        raise unknown("scale_at", scale_at, ("train", "test"))
    if restore not in ("", "sqrt_keep", "exact"):
        raise unknown("restore", restore, ("sqrt_keep", "exact"))
    if restore and scale_at == "test":
        raise DropbnError("Dropout: restore is defined for scale_at='train'; give one of them.")


def keep_of(law: laws.Dropout) -> jax.Array:
    """The law's keep probability as an array.

    It is not in the dtype of a bfloat16 input, where 0.9 would round to 0.8984 and change the mask. That of a
    Python rate is float64 under `jax_enable_x64`, as in Flax.
    """
    return jnp.asarray(law.keep)


def dropout_at_test(law: laws.Dropout, inputs: jax.Array, scale_at: str) -> jax.Array:
    """What `Dropout` gives in test mode."""
    return inputs if scale_at == "train" else inputs * keep_of(law).astype(inputs.dtype)


def dropout(
    law: laws.Dropout,
    inputs: jax.Array,
    key: jax.Array,
    shape: tuple[int, ...],
    scale_at: str = "train",
    restore: str = "",
) -> jax.Array:
    """What `Dropout` gives in training; one draw of `shape` decides what is dropped."""
    keep = keep_of(law)
    y = dropped(inputs, key, keep, shape, scale_at == "train")
    if restore == "sqrt_keep":
        return y * jnp.sqrt(keep).astype(inputs.dtype)
    return _restored(inputs, y, keep) if restore else y


def _restored(inputs, y, keep):
    """`y` shrunk around each channel's mean until its variance is that of `inputs`."""
    inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    channels = tuple(range(inputs.ndim - 1))
    c, v = inputs.mean(channels), inputs.var(channels)
    # v / (v + s2 (c^2 + v)) without s2, which is infinite at rate 1. There, and in a constant channel,
    # the factor and its gradient are 0, not NaN.
    varies = v > 1e-18
    v = jnp.where(varies, v, 1)
    kept = keep * v / (v + (1 - keep) * jnp.square(c))
    positive = varies & (kept > 0)
    factor = jnp.where(positive, jnp.sqrt(jnp.where(positive, kept, 1)), 0)
    return (c + (y - c) * factor).astype(y.dtype)


@functools.partial(jax.jit, static_argnums=(3, 4))  # Traced once for all layers of a shape.
def dropped(
    inputs: jax.Array, key: jax.Array, keep: jax.Array, shape: tuple[int, ...], scaled: bool
) -> jax.Array:
    """`inputs` where a mask of `shape` keeps them, else 0; `scaled` divides them by `keep`."""
    mask = draws.bernoulli(key, keep, shape).astype(jnp.float32) > 0
    if scaled:
        inputs = divided(inputs, keep)
    return jnp.where(mask, inputs, jnp.zeros_like(inputs))


def divided(inputs: jax.Array, keep: jax.Array) -> jax.Array:
    """`inputs / keep`; at keep = 0, where every unit is dropped, `inputs`, so that gradients stay finite."""
    return inputs / jnp.where(keep > 0, keep, 1).astype(inputs.dtype)
