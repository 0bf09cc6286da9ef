"""Multiplicative noise as Linen modules: `y = x * m` with `E[m] = 1` and `Var[m] = s2`.

`dropbn.nn.laws` defines m and s2 of each noise; this file draws m. Each class is a drop-in for
`flax.linen.Dropout`: the same `rngs={'dropout': key}`, `deterministic`, `broadcast_dims` and `rng=`.

The amount (`rate` or `beta`) may be a traced scalar, so that one compiled step serves every amount. A traced
amount cannot be checked: each class says what one outside its range does.

Uniform and normal draws are float32 whatever the input's dtype and `jax_enable_x64`; the product has the
input's dtype.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, unknown
from dropbn.nn import laws
from dropbn.nn.kernels import draws


class Noise(nn.Module):
    """When noise is drawn, and from which key. Use a subclass.

    A subclass has the fields of `flax.linen.Dropout`, its own first, and defines `apply_noise`.
    """

    @property
    def is_identity(self) -> bool:
        """Whether even training is known to change nothing."""
        return False

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        """`inputs * m` in training, `inputs` where `deterministic`.

        Args:
          inputs: array of any shape and floating dtype.
          deterministic: True switches the noise off. Give it here or at construction, not in both.
          rng: the key to draw from; by default one of the `rng_collection` stream.

        Returns:
          Array of the shape and dtype of `inputs`.

        Raises:
          DropbnError: noise is on and no `rng_collection` stream was given to `apply`. (Linen itself
            would silently draw from the 'params' stream.) `init` without one gives what test mode gives.
        """
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return self.at_test(inputs)
        if self.is_identity:
            return inputs
        if rng is None:
            if not self.has_rng(self.rng_collection):
                if self.is_initializing():
                    return self.at_test(inputs)
                raise DropbnError(
                    f"{type(self).__name__} at '{'/'.join(self.path)}' is on but got no random key: call "
                    f"apply(..., rngs={{'{self.rng_collection}': key}}) or pass deterministic=True."
                )
            rng = self.make_rng(self.rng_collection)
        shape = list(inputs.shape)
        for dim in self.broadcast_dims:
            shape[dim] = 1
        return self.apply_noise(inputs, rng, tuple(shape))

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return inputs


class Multiplicative(Noise):
    """`inputs * m` by a law. A subclass defines `law` and `multiplier(key, shape) -> float32 m`."""

    def __post_init__(self) -> None:
        _ = self.law  # Refuses an amount outside its range.
        super().__post_init__()

    @property
    def amount(self) -> laws.Real:
        return self.law.amount

    @property
    def s2(self) -> laws.Real:
        return self.law.s2

    @property
    def is_identity(self) -> bool:
        return laws.is_number(self.amount) and self.amount == 0

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return (inputs * self.multiplier(rng, shape)).astype(inputs.dtype)


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
        if self.scale_at not in ("train", "test"):
            raise unknown("scale_at", self.scale_at, ("train", "test"))
        if self.restore not in ("", "sqrt_keep", "exact"):
            raise unknown("restore", self.restore, ("sqrt_keep", "exact"))
        if self.restore and self.scale_at == "test":
            raise DropbnError("Dropout: restore is defined for scale_at='train'; give one of them.")
        super().__post_init__()

    @property
    def law(self) -> laws.Dropout:
        return laws.Dropout(self.rate)

    @property
    def keep(self) -> jax.Array:
        # Not in a bfloat16 input's dtype, where 0.9 would round to 0.8984 and change the mask. A Python rate
        # is float64 under jax_enable_x64, as in Flax.
        return jnp.asarray(self.law.keep)

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return inputs if self.scale_at == "train" else inputs * self.keep.astype(inputs.dtype)

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        y = _drop(inputs, rng, self.keep, shape, self.scale_at == "train")
        if self.restore == "sqrt_keep":
            return y * jnp.sqrt(self.keep).astype(inputs.dtype)
        return self._restored(inputs, y) if self.restore else y

    def _restored(self, inputs, y):
        inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        channels = tuple(range(inputs.ndim - 1))
        c, v = inputs.mean(channels), inputs.var(channels)
        # v / (v + s2 (c^2 + v)) without s2, which is infinite at rate 1. There, and in a constant channel,
        # the factor and its gradient are 0, not NaN.
        varies = v > 1e-18
        v = jnp.where(varies, v, 1)
        kept = self.keep * v / (v + (1 - self.keep) * jnp.square(c))
        positive = varies & (kept > 0)
        factor = jnp.where(positive, jnp.sqrt(jnp.where(positive, kept, 1)), 0)
        return (c + (y - c) * factor).astype(y.dtype)


@functools.partial(jax.jit, static_argnums=(3, 4))  # Traced once for all layers of a shape.
def _drop(inputs, key, keep, shape, scaled):
    """`inputs` where a mask of `shape` keeps them, else 0; `scaled` divides them by `keep`."""
    mask = draws.bernoulli(key, keep, shape).astype(jnp.float32) > 0
    if scaled:
        # The inner `where` keeps the gradient finite at keep = 0, where every unit is dropped.
        inputs = inputs / jnp.where(keep > 0, keep, 1).astype(inputs.dtype)
    return jnp.where(mask, inputs, jnp.zeros_like(inputs))


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
        return 1.0 + jnp.sqrt(self.s2) * draws.normal(rng, shape)


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
        return 1.0 + self.beta * (2 * draws.uniform(rng, shape) - 1)


KINDS: dict[str, type[Noise]] = {"dropout": Dropout, "gaussian": GaussianDropout, "uout": Uout}


def create(config: Any) -> Callable[..., Noise]:
    """A function `make(amount, name=...)` that builds the noise of a config; its rate or beta may be traced.

    Args:
      config: has `kind`, and `scale_at` and `restore` for dropout (`config.model.noise`).
    """
    own = {"scale_at": config.scale_at, "restore": config.restore} if config.kind == "dropout" else {}
    return functools.partial(KINDS[config.kind], **own)
