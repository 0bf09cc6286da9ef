"""Draws beside `jax.random`'s own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.nn.kernels import draws

PAIRS = {
    "uniform": (draws.uniform, lambda key, shape: jax.random.uniform(key, shape, jnp.float32)),
    "bernoulli": (
        lambda key, shape: draws.bernoulli(key, 0.3, shape),
        lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    ),
    "normal": (draws.normal, lambda key, shape: jax.random.normal(key, shape, jnp.float32)),
}


@pytest.fixture(params=(False, True), ids=("halves", "partitionable"))
def partitionable(request):
    before = jax.config.jax_threefry_partitionable
    jax.config.update("jax_threefry_partitionable", request.param)
    yield
    jax.config.update("jax_threefry_partitionable", before)


@pytest.fixture(params=(False, True), ids=("x32", "x64"))
def x64(request):
    with jax.enable_x64(request.param):
        yield


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(7,), (4, 6), (0, 3)], ids=str)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_draws_are_those_of_jax(partitionable, x64, name, shape, impl):
    ours, theirs = PAIRS[name]
    key = jax.random.key(3, impl=impl)
    found, wanted = ours(key, shape), theirs(key, shape)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == (jnp.uint8 if name == "bernoulli" else jnp.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_probability_of_any_dtype(partitionable, x64, dtype):
    key, p = jax.random.key(3), jnp.asarray(0.3, jax.dtypes.canonicalize_dtype(dtype))
    np.testing.assert_array_equal(draws.bernoulli(key, p, (99,)), jax.random.bernoulli(key, p, (99,)))


@pytest.mark.parametrize("name", PAIRS)
def test_draws_of_many_keys(partitionable, name):
    ours, theirs = PAIRS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    compiled = jax.jit(jax.vmap(lambda key: ours(key, (5, 5))))(keys)
    np.testing.assert_array_equal(compiled, jnp.stack([theirs(key, (5, 5)) for key in keys]))


def test_a_raw_key():
    key = jax.random.PRNGKey(4)
    np.testing.assert_array_equal(draws.uniform(key, (3,)), jax.random.uniform(key, (3,)))
