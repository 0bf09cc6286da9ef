"""When noise is drawn, and from which key: the base classes of every noise."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from dropbn.errors import DropbnError, shown
from dropbn.nn import laws


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
        return self.apply_noise(inputs, rng, shape_of_draw(inputs.shape, self.shared_dims(inputs.ndim)))

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return inputs

    def shared_dims(self, ndim: int) -> Sequence[int]:
        """The dimensions of an input with `ndim` of them that share one draw."""
        return self.broadcast_dims

    @property
    def is_shared(self) -> bool:
        """Whether one draw may serve several positions."""
        return bool(self.broadcast_dims)


class OfLaw(Noise):
    """A noise of `dropbn.nn.laws`. A subclass defines `law`."""

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
        return self.law.is_identity


class Multiplicative(OfLaw):
    """`inputs * m`. A subclass defines `multiplier(key, shape) -> float32 m`."""

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return multiplied(inputs, self.multiplier(rng, shape))


def multiplied(inputs: jax.Array, m: jax.Array) -> jax.Array:
    """`inputs * m` in the dtype of `inputs`."""
    return (inputs * m).astype(inputs.dtype)


def shape_of_draw(shape: tuple[int, ...], shared: Sequence[int]) -> tuple[int, ...]:
    """The shape of an input's draw: 1 along the dimensions that share one."""
    drawn = list(shape)
    for dim in shared:
        if not isinstance(dim, (int, np.integer)) or not -len(shape) <= dim < len(shape):
            raise DropbnError(
                f"broadcast_dims: an input of shape {shape} has no dimension {shown(repr(dim))}."
            )
        drawn[dim] = 1
    return tuple(drawn)
