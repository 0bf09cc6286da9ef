"""Alpha dropout, which adds noise and multiplies by it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dropbn.nn import laws
from dropbn.nn.kernels import draws
from dropbn.nn.noise.base import OfLaw


class AlphaDropout(OfLaw):
    """Alpha dropout for SELU networks: y = a (x d + alpha (1 - d)) + b (Klambauer et al. 2017).

    `laws.AlphaDropout` says what a, alpha and b are. Inputs of mean 0 and variance 1 keep them. For others
    even the mean shifts between training, a keep c, and test mode, c. A traced rate of 1 or more gives
    infinities or NaN.

    Attributes:
      rate: in [0, 1); a Python number or a traced scalar.
      broadcast_dims, deterministic, rng_collection: as in `Dropout`.

    Raises:
      DropbnError: a rate outside [0, 1).
    """

    rate: float
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @property
    def law(self) -> laws.AlphaDropout:
        return laws.AlphaDropout(self.rate)

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return alpha_dropout(self.law, inputs, rng, shape)


def alpha_dropout(
    law: laws.AlphaDropout, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """`inputs` with alpha where a mask of `shape` drops them, scaled and shifted."""
    mask = draws.bernoulli(key, jnp.asarray(law.keep), shape).astype(jnp.float32) > 0
    return (law.scale * jnp.where(mask, inputs, law.alpha) + law.offset).astype(inputs.dtype)
