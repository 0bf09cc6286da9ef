"""Activations by name: Flax's, and those that the caffenet benchmark adds."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError
from dropbn.nn.kernels import draws
from dropbn.nn.noise import Noise


def identity(x: jax.Array) -> jax.Array:
    """y = x: no nonlinearity."""
    return x


def maxout(x: jax.Array) -> jax.Array:
    """The larger of each two neighbouring channels, (..., 2c) -> (..., c) (Goodfellow et al. 2013).

    Raises:
      DropbnError: an odd number of channels.
    """
    if x.shape[-1] % 2:
        raise DropbnError(f"maxout takes an even number of channels, got an array of shape {x.shape}.")
    # Not max(-1): its gradient is NaN if XLA computes x twice and rounds it differently.
    return jnp.maximum(x[..., ::2], x[..., 1::2])


class PReLU(nn.Module):
    """y = max(x, 0) + slope * min(x, 0); each channel learns its slope from 0.25 (He et al. 2015, eq. 1)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return leaky(x, slope)


def leaky(x: jax.Array, slope: jax.Array) -> jax.Array:
    """y = max(x, 0) + slope * min(x, 0)."""
    return jnp.where(x > 0, x, x * slope.astype(x.dtype))


class RReLU(Noise):
    """Randomized leaky ReLU: y = x where x > 0, else x / a (Xu et al. 2015, section 2.4).

    In training a ~ U(low, high) for every element, in test mode a = (low + high) / 2. So it is a noise: it
    draws from the dropout stream and is switched on and off with dropout. Because E[1 / a] is not 1 / E[a],
    even the mean of its output shifts between training and test, by 8 % of the negative part at the default
    bounds.

    Attributes:
      low, high: bounds of a; 3 and 8 are the published ones.
      broadcast_dims: dimensions that share one draw.
      deterministic: True switches the noise off.
      rng_collection: name of the random stream.
    """

    low: float = 3.0
    high: float = 8.0
    broadcast_dims: tuple[int, ...] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return rrelu_at_test(inputs, self.low, self.high)

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return rrelu(inputs, rng, shape, self.low, self.high)


def rrelu_at_test(inputs: jax.Array, low: float, high: float) -> jax.Array:
    """What `RReLU` gives in test mode."""
    return jnp.where(inputs > 0, inputs, inputs / ((low + high) / 2))


def rrelu(inputs: jax.Array, key: jax.Array, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
    """What `RReLU` gives in training, with an `a` of `shape`."""
    a = low + (high - low) * draws.uniform(key, shape)
    return jnp.where(inputs > 0, inputs, (inputs / a).astype(inputs.dtype))


# Functions of an array, and module classes.
ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "identity": identity,
    "maxout": maxout,
    "prelu": PReLU,
    "rrelu": RReLU,
}
