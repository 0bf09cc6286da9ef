"""Random keys: one seed, one stream for each purpose, and no state to carry or to save.

A key follows from the seed, the stream's name and indices such as epoch and position, so that a resumed
run draws what an uninterrupted one would have drawn.
"""

import jax

STREAMS = ("init", "shuffle", "augment", "noise")


def key(seed: int | jax.Array, stream: str, *indices: int | jax.Array) -> jax.Array:
    """The key of a `stream` (one of `STREAMS`) at `indices`, all of which may be traced."""
    folded = jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))
    for index in indices:
        folded = jax.random.fold_in(folded, index)
    return folded
