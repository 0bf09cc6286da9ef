"""Draws beside `jax.random`'s own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.nn.kernels import draws

PAIRS = {
    "uniform": (draws.uniform, jax.random.uniform),
    "bernoulli": (
        lambda key, shape: draws.bernoulli(key, 0.3, shape),
        lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    ),
    "normal": (draws.normal, jax.random.normal),
}


@pytest.fixture(params=(False, True), ids=("halves", "partitionable"))
def partitionable(request):
    before = jax.config.jax_threefry_partitionable
    jax.config.update("jax_threefry_partitionable", request.param)
    yield
    jax.config.update("jax_threefry_partitionable", before)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(7,), (4, 6), (0, 3)], ids=str)
def test_draws_are_those_of_jax(partitionable, name, shape):
    ours, theirs = PAIRS[name]
    np.testing.assert_array_equal(ours(jax.random.key(3), shape), theirs(jax.random.key(3), shape))


@pytest.mark.parametrize("name", PAIRS)
def test_draws_of_many_keys(partitionable, name):
    ours, theirs = PAIRS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    compiled = jax.jit(jax.vmap(lambda key: ours(key, (5, 5))))(keys)
    np.testing.assert_array_equal(compiled, jnp.stack([theirs(key, (5, 5)) for key in keys]))


@pytest.mark.parametrize("key", [jax.random.PRNGKey(4), jax.random.key(5, impl="rbg")], ids=("raw", "rbg"))
def test_other_keys(key):
    np.testing.assert_array_equal(draws.uniform(key, (3,)), jax.random.uniform(key, (3,)))
