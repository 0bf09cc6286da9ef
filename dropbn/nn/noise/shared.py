"""Dropout whose m several positions share: spatial dropout, stochastic depth, DropBlock."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dropbn.nn import laws
from dropbn.nn.kernels import draws
from dropbn.nn.noise.base import Multiplicative
from dropbn.nn.noise.dropout import divided, dropout, keep_of


class SharedDropout(Multiplicative):
    """The m of `Dropout(rate)` at every position, where several positions share one draw. Use a subclass.

    Attributes:
      rate: probability of dropping a position, in [0, 1]; a Python number or a traced scalar. One outside
        does as in `Dropout`.
      deterministic, rng_collection: as in `Dropout`.

    Raises:
      DropbnError: a rate outside [0, 1].
    """

    rate: float
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @property
    def law(self) -> laws.Dropout:
        return laws.Dropout(self.rate)

    @property
    def is_shared(self) -> bool:
        return True

    def shared_dims(self, ndim: int) -> Sequence[int]:
        return ()

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return dropout(self.law, inputs, rng, shape)


def pixels(ndim: int) -> Sequence[int]:
    """The dimensions between the first and the last."""
    return range(1, ndim - 1)


def all_but_examples(ndim: int) -> Sequence[int]:
    """All dimensions but the first."""
    return range(1, ndim)


class SpatialDropout(SharedDropout):
    """Spatial dropout: it drops whole channels of an example (Tompson et al. 2015).

    All dimensions between the first and the last share one draw, so that (batch, features) get plain dropout.
    Fields and errors are those of `SharedDropout`.
    """

    def shared_dims(self, ndim: int) -> Sequence[int]:
        return pixels(ndim)


class StochasticDepth(SharedDropout):
    """Stochastic depth, or drop path: it drops a whole example, mostly a branch's (Huang et al. 2016).

    All dimensions but the first share one draw. Kept examples are divided by keep in training, where the
    paper multiplies by keep in test mode. Fields and errors are those of `SharedDropout`.
    """

    def shared_dims(self, ndim: int) -> Sequence[int]:
        return all_but_examples(ndim)


class DropBlock(SharedDropout):
    """DropBlock: it drops square blocks of each channel of an example (Ghiasi et al. 2018).

    Blocks extend along all dimensions between the first and the last, so that (batch, features) get plain
    dropout. Unlike the paper's, they also overlap the border, and kept positions are divided by keep, not by
    the share that the batch keeps. So E[m] = 1 and Var[m] = s2 are exact at every position; `laws.DropBlock`
    has the derivation.

    Attributes:
      rate, deterministic, rng_collection: as in `SharedDropout`; the rate is that of positions, not of
        blocks.
      block_size: side of a block; it may exceed the array's. With 1 this is `Dropout`.

    Raises:
      DropbnError: a rate outside [0, 1], a block_size below 1.
    """

    block_size: int = 7

    @property
    def law(self) -> laws.DropBlock:
        return laws.DropBlock(self.rate, self.block_size)

    def apply_noise(self, inputs: jax.Array, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return drop_blocks(self.law, inputs, rng, shape)


def drop_blocks(law: laws.DropBlock, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What `DropBlock` gives in training."""
    dims = tuple(pixels(len(shape)))
    keep_of_block = jnp.asarray(law.keep_of_block(len(dims)))
    return _drop_blocks(inputs, key, keep_of(law), keep_of_block, shape, dims, law.block_size)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _drop_blocks(inputs, key, keep, keep_of_block, shape, dims, size):
    """`inputs / keep` outside of the dropped blocks, which have `size` positions along each of `dims`."""
    starts = tuple(side + (size - 1) * (dim in dims) for dim, side in enumerate(shape))
    mask = draws.bernoulli(key, keep_of_block, starts).astype(jnp.float32)
    for dim in dims:
        window = [size if other == dim else 1 for other in range(len(shape))]
        mask = lax.reduce_window(mask, jnp.inf, lax.min, window, (1,) * len(shape), "VALID")
    return jnp.where(mask > 0, divided(inputs, keep), jnp.zeros_like(inputs))
