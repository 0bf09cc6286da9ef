"""Keys: every stream and every index has its own."""

import itertools

import jax
import numpy as np

from dropbn import keys


def test_no_two_streams_or_indices_share_a_key():
    indices = [(), *itertools.product(range(3)), *itertools.product(range(3), repeat=2)]
    made = [
        jax.random.key_data(keys.key(seed, stream, *of_stream))
        for seed, stream, of_stream in itertools.product((0, 1), keys.STREAMS, indices)
    ]
    assert len(np.unique(made, axis=0)) == len(made) == 2 * 4 * 13


def test_a_key_folds_in_its_stream_and_then_its_indices():
    """As it was when a run began that goes on from its checkpoint."""
    wanted = jax.random.key(5)
    for number in (3, 7, 2):
        wanted = jax.random.fold_in(wanted, number)
    for made in (
        keys.key(5, "noise", 7, 2),
        jax.jit(lambda *given: keys.key(given[0], "noise", *given[1:]))(5, 7, 2),
    ):
        np.testing.assert_array_equal(jax.random.key_data(made), jax.random.key_data(wanted))
