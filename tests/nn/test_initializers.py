"""Initial weights: published moments, orthogonality, and what LSUV and Hendrycks promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dropbn import models
from dropbn.errors import DropbnError
from dropbn.nn import initializers
from dropbn.nn.layers import Layers, Size
from dropbn.nn.order import parse

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("activation", "forward", "backward"),
    # Hendrycks & Gimpel 2016, Table 1; its E[f'^2] of gelu, tanh and elu (.444, .216, .671) are not what
    # quadrature gives, which stands here (SciPy quad, 1e-10).
    [
        ("identity", 1.0, 1.0),
        ("relu", 0.5, 0.5),
        ("gelu", 0.425, 0.4558),
        ("tanh", 0.394, 0.4644),
        ("elu", 0.645, 0.6681),
    ],
)
def test_second_moments(activation, forward, backward):
    assert initializers.second_moments(activation) == pytest.approx((forward, backward), abs=5e-4)


def test_variances():
    """Five standard errors of a variance over n values are 5 sqrt(2 / n) of it."""
    shape = (3, 3, 32, 256)
    wanted = {"he_fan_out": 2 / (9 * 256), "he_fan_in": 2 / (9 * 32), "hendrycks": 1 / (9 * 32) / (0.5 / 0.8)}
    for name, variance in wanted.items():
        kernel = initializers.create(name, "relu", keep=0.8)[0](1)(KEY, shape)
        assert float(kernel.var()) == pytest.approx(variance, rel=5 * (2 / kernel.size) ** 0.5)
    flat = initializers.create("orthogonal")[0](1)(KEY, shape).reshape(-1, 256)
    np.testing.assert_allclose(flat.T @ flat, np.eye(256), atol=1e-4)
    dense = initializers.create("hendrycks", "relu", keep=0.8)[1](KEY, (300, 500))
    np.testing.assert_allclose((dense**2).sum(0), 1 / (0.5 / 0.8 + 0.8 * 0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "features", "groups", "timm", "he_fan_out"),
    [
        # sqrt(2 / 25) and sqrt(2 / (25 1152)): EfficientNet-B0's widest depthwise convolution.
        (5, 1152, 1152, 0.28284, 0.0083333),
        # sqrt(2 / (9 128 / 4)) and sqrt(2 / (9 128)).
        (3, 128, 4, 0.083333, 0.041667),
        (3, 128, 1, 0.041667, 0.041667),
    ],
)
def test_timm_counts_the_features_of_one_group(kernel, features, groups, timm, he_fan_out):
    """The standard error of a deviation over n values is 1 / sqrt(2 n) of it; five of them."""
    config = base.get_config().model
    config.num_classes = 10
    for config.init, deviation in (("timm", timm), ("he_fan_out", he_fan_out)):
        layer = Layers(
            parse("conv"), (Size(features, kernel, groups=groups),), models.create(config).parts
        ).init(KEY, jnp.ones((1, 8, 8, features)))["params"]["conv1"]["kernel"]
        assert layer.shape == (kernel, kernel, features // groups, features)
        assert float(layer.std()) == pytest.approx(deviation, rel=5 / (2 * layer.size) ** 0.5)


def test_timm_draws_a_classifier_by_its_classes():
    """U(-1/sqrt(100), 1/sqrt(100)) has the variance 1 / 300; the largest of 40,000 values is near its end."""
    weights = initializers.create("timm")[1](KEY, (400, 100))
    assert float(jnp.abs(weights).max()) == pytest.approx(0.1, rel=1e-3)
    # Of x^2 for x ~ U(-b, b): mean b^2 / 3, variance 4 b^4 / 45.
    assert float(jnp.square(weights).mean()) == pytest.approx(1 / 300, rel=5 * (0.8 / 40_000) ** 0.5)


def test_hendrycks_keeps_the_variance_under_dropout():
    """Var[W m f(z)] = 1 for z ~ N(0, 1), forward term alone, as the convolutions have it."""
    keep, n = 0.7, 2000
    kernel = initializers.create("hendrycks", "relu", keep)[0](1)(KEY, (1, 1, n, 400))[0, 0]
    mask_key, z_key = jax.random.split(KEY)
    x = nn.relu(jax.random.normal(z_key, (1000, n))) * jax.random.bernoulli(mask_key, keep, (1000, n)) / keep
    assert float(jnp.square(x @ kernel).mean()) == pytest.approx(1, rel=0.03)


def test_names_and_activations_that_do_not_fit():
    with pytest.raises(DropbnError, match="Did you mean 'lsuv'"):
        initializers.create("lsvu")
    for activation in ("maxout", "prelu", "rrelu"):
        with pytest.raises(DropbnError, match="an activation of one number"):
            initializers.create("hendrycks", activation)


@pytest.mark.slow
def test_lsuv_makes_every_output_vary_by_one():
    config = base.get_config().model
    config.depth, config.width, config.num_classes, config.init = 8, 4, 10, "lsuv"
    model, images = models.create(config), jax.random.normal(KEY, (16, 8, 8, 1))
    variables = model.init(KEY, images)
    scaled = initializers.lsuv(model, variables, images)
    found = []

    def visit(run, args, kwargs, context):
        output = run(*args, **kwargs)
        if isinstance(context.module, (nn.Conv, nn.Dense)):
            found.append(float((output - context.module.get_variable("params", "bias", 0)).std()))
        return output

    with nn.intercept_methods(visit):
        model.apply(scaled, images, True, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(found, 1, rtol=1e-3)
    assert len(found) == 10
    # Nothing but the size of the kernels has changed.
    kernel, before = (v["params"]["stage2_block1"]["conv1"]["kernel"] for v in (scaled, variables))
    np.testing.assert_allclose(kernel / before, (kernel / before).mean(), rtol=1e-4)
    with pytest.raises(DropbnError, match="does not vary"):
        initializers.lsuv(model, variables, jnp.zeros_like(images))
