"""Activations of our own: closed forms, and RReLU as the noise it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.diagnose import modes
from dropbn.errors import DropbnError
from dropbn.nn import activations
from dropbn.nn.layers import Layers, Parts
from dropbn.nn.noise import Dropout
from dropbn.nn.norm import BatchNorm
from dropbn.nn.order import parse

PARTS = Parts(norm=BatchNorm, noise=lambda name: Dropout(0.5, name=name))
X = jax.random.normal(jax.random.key(0), (4, 100, 100, 6))


def test_maxout_takes_the_larger_of_two():
    np.testing.assert_array_equal(activations.maxout(jnp.array([[1.0, -2.0, -4.0, -3.0]])), [[1.0, -3.0]])
    with pytest.raises(DropbnError, match="an even number of channels"):
        activations.maxout(jnp.ones((2, 3)))


def test_prelu_has_a_slope_for_each_channel():
    layers = Layers(parse("prelu"), (), PARTS)
    y, variables = layers.init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(y, np.where(X > 0, X, 0.25 * X), rtol=1e-6)
    slopes = jnp.arange(6.0)
    y = layers.apply({"params": {"prelu1": {"slope": slopes}}}, X)
    np.testing.assert_allclose(y, np.where(X > 0, X, slopes * X), rtol=1e-6)
    assert variables["params"]["prelu1"]["slope"].shape == (6,)


def test_rrelu_is_xus():
    layers = Layers(parse("act"), (), PARTS._replace(activation="rrelu"))
    np.testing.assert_allclose(layers.apply({}, X), np.where(X > 0, X, X / 5.5), rtol=1e-6)
    y = np.asarray(layers.apply({}, X, False, rngs={"dropout": jax.random.key(1)}))
    positive = np.asarray(X) > 0
    np.testing.assert_array_equal(y[positive], X[positive])
    slopes = (y / X)[~positive]
    assert slopes.min() >= 1 / 8 - 1e-6 and slopes.max() <= 1 / 3 + 1e-6
    # E[1/a] = ln(8/3) / 5 and E[1/a^2] = 1/24 for a ~ U(3, 8); five standard errors.
    mean, square = np.log(8 / 3) / 5, 1 / 24
    assert slopes.mean() == pytest.approx(mean, abs=5 * ((square - mean**2) / slopes.size) ** 0.5)
    with pytest.raises(DropbnError, match="got no random key"):
        layers.apply({}, X, False)


def test_rrelu_is_switched_with_the_noises():
    layers = Layers(parse("bn rrelu"), (), PARTS)
    variables = layers.init(jax.random.key(0), X)
    for noise_on in (False, True):
        mode = modes.Mode(noise_on, "running", update=False)
        first, second = (
            modes.apply(layers, variables, X, mode=mode, rngs={"dropout": jax.random.key(i)})[0]
            for i in (1, 2)
        )
        assert (np.abs(first - second).max() > 0.1) == noise_on
