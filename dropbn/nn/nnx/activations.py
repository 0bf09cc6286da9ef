"""The activations with parameters or draws, as NNX modules."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from dropbn.nn import activations
from dropbn.nn.nnx.base import Flags, Noise


class PReLU(nnx.Module):
    """`dropbn.nn.activations.PReLU`: each channel learns its slope from 0.25."""

    def __init__(self, num_features: int) -> None:
        self.slope = nnx.Param(jnp.full((num_features,), 0.25))

    def __call__(self, x: jax.Array) -> jax.Array:
        return activations.leaky(x, self.slope[...])


class RReLU(Noise):
    """`dropbn.nn.activations.RReLU`: y = x where x > 0, else x / a; in training a ~ U(low, high)."""

    def __init__(self, low: float = 3.0, high: float = 8.0, **flags: Unpack[Flags]) -> None:
        self.low, self.high = low, high
        super().__init__(**flags)

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return activations.rrelu_at_test(inputs, self.low, self.high)

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return activations.rrelu(inputs, key, shape, self.low, self.high)
