"""Noises whose m has a density: Gaussian dropout and Uout."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dropbn.nn import laws
from dropbn.nn.kernels import draws
from dropbn.nn.noise.base import Multiplicative


class GaussianDropout(Multiplicative):
    """Gaussian dropout: m ~ N(1, s2) with s2 = rate / (1 - rate), the variance of Dropout(rate)'s m.

    Source: Srivastava et al. 2014, section 10. Nothing is rescaled at test time. A traced rate outside [0, 1)
    has no variance: the output is NaN, at rate 1 infinite.

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
    def law(self) -> laws.GaussianDropout:
        return laws.GaussianDropout(self.rate)

    def multiplier(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return gaussian(self.law, rng, shape)


class Uout(Multiplicative):
    """Uout: m = 1 + r with r ~ U(-beta, beta), s2 = beta^2 / 3 (Li et al. 2018, eq. 15).

    A traced beta outside [0, 1] is taken as it is: a negative one acts as -beta, because r is symmetric, and
    with one above 1 some m are negative.

    Attributes:
      beta: half width of the uniform noise, in [0, 1]; a Python number or a traced scalar.
      broadcast_dims, deterministic, rng_collection: as in `Dropout`.

    Raises:
      DropbnError: beta outside [0, 1].
    """

    beta: float
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @property
    def law(self) -> laws.Uout:
        return laws.Uout(self.beta)

    def multiplier(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return uniform(self.law, rng, shape)


def gaussian(law: laws.GaussianDropout, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """m ~ N(1, s2)."""
    return 1.0 + jnp.sqrt(law.s2) * draws.normal(key, shape)


def uniform(law: laws.Uout, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """m ~ 1 + U(-beta, beta)."""
    return 1.0 + law.beta * (2 * draws.uniform(key, shape) - 1)
