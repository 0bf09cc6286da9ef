"""The noises of `dropbn.nn.noise` as NNX modules, each a drop-in for `flax.nnx.Dropout`.

They draw what the Linen modules draw from the same key. `train()`, `eval()`, `nnx.view` and `set_attributes`
switch them. The amount (`rate` or `beta`) is a static attribute, so that another one compiles anew. A traced
scalar, at construction or as `layer.rate = nnx.data(rate)`, makes one compiled step serve every amount.
"""

from collections.abc import Sequence
from typing import Unpack

import jax

from dropbn.nn import laws
from dropbn.nn.nnx.base import Flags, Noise, OfLaw, OfRate
from dropbn.nn.noise import alpha, base, continuous, dropout, shared

__all__ = [
    "KINDS",
    "AlphaDropout",
    "DropBlock",
    "Dropout",
    "GaussianDropout",
    "Noise",
    "OfLaw",
    "OfRate",
    "SharedDropout",
    "SpatialDropout",
    "StochasticDepth",
    "Uout",
]


class Dropout(OfRate):
    """`dropbn.nn.noise.Dropout`, with the masks of `flax.nnx.Dropout`, `scale_at` and `restore`."""

    def __init__(
        self, rate: float, *, scale_at: str = "train", restore: str = "", **flags: Unpack[Flags]
    ) -> None:
        dropout.check_scales(scale_at, restore)
        self.scale_at, self.restore = scale_at, restore
        super().__init__(rate, **flags)

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return dropout.dropout_at_test(self.law, inputs, self.scale_at)

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return dropout.dropout(self.law, inputs, key, shape, self.scale_at, self.restore)


class GaussianDropout(OfRate):
    """`dropbn.nn.noise.GaussianDropout`: m ~ N(1, rate / (1 - rate))."""

    law_class = laws.GaussianDropout

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return base.multiplied(inputs, continuous.gaussian(self.law, key, shape))


class AlphaDropout(OfRate):
    """`dropbn.nn.noise.AlphaDropout`, for SELU networks."""

    law_class = laws.AlphaDropout

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return alpha.alpha_dropout(self.law, inputs, key, shape)


class Uout(OfLaw):
    """`dropbn.nn.noise.Uout`: m = 1 + U(-beta, beta).

    Attributes:
      beta: a number in [0, 1], or a traced scalar.

    Raises:
      DropbnError: a beta outside [0, 1].
    """

    def __init__(self, beta: float, **flags: Unpack[Flags]) -> None:
        self.beta = beta
        super().__init__(**flags)
        _ = self.law

    @property
    def law(self) -> laws.Uout:
        return laws.Uout(self.beta)

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return base.multiplied(inputs, continuous.uniform(self.law, key, shape))


class SharedDropout(OfRate):
    """The m of `Dropout(rate)`, where several positions share one draw. Use a subclass.

    `broadcast_dims` share it in addition.
    """

    @property
    def is_shared(self) -> bool:
        return True

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return dropout.dropout(self.law, inputs, key, shape)


class SpatialDropout(SharedDropout):
    """`dropbn.nn.noise.SpatialDropout`: it drops whole channels of an example."""

    def shared_dims(self, ndim: int) -> Sequence[int]:
        return *self.broadcast_dims, *shared.pixels(ndim)


class StochasticDepth(SharedDropout):
    """`dropbn.nn.noise.StochasticDepth`: it drops a whole example."""

    def shared_dims(self, ndim: int) -> Sequence[int]:
        return *self.broadcast_dims, *shared.all_but_examples(ndim)


class DropBlock(SharedDropout):
    """`dropbn.nn.noise.DropBlock`: it drops blocks of `block_size` pixels a side of an example's channel."""

    def __init__(self, rate: float, *, block_size: int = 7, **flags: Unpack[Flags]) -> None:
        self.block_size = block_size
        super().__init__(rate, **flags)

    @property
    def law(self) -> laws.DropBlock:
        return laws.DropBlock(self.rate, self.block_size)

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return shared.drop_blocks(self.law, inputs, key, shape)


KINDS: dict[str, type[Noise]] = {
    "dropout": Dropout,
    "gaussian": GaussianDropout,
    "uout": Uout,
    "spatial": SpatialDropout,
    "stochastic_depth": StochasticDepth,
    "dropblock": DropBlock,
    "alpha": AlphaDropout,
}
