"""Initial weights: published moments, orthogonality, and what LSUV and Hendrycks promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dropbn import initializers, models
from dropbn.errors import DropbnError

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
        kernel = initializers.create(name, "relu", keep=0.8)[0](KEY, shape)
        assert float(kernel.var()) == pytest.approx(variance, rel=5 * (2 / kernel.size) ** 0.5)
    flat = initializers.create("orthogonal")[0](KEY, shape).reshape(-1, 256)
    np.testing.assert_allclose(flat.T @ flat, np.eye(256), atol=1e-4)
    dense = initializers.create("hendrycks", "relu", keep=0.8)[1](KEY, (300, 500))
    np.testing.assert_allclose((dense**2).sum(0), 1 / (0.5 / 0.8 + 0.8 * 0.5), rtol=1e-5)


def test_hendrycks_keeps_the_variance_under_dropout():
    """Var[W m f(z)] = 1 for z ~ N(0, 1), forward term alone, as the convolutions have it."""
    keep, n = 0.7, 2000
    kernel = initializers.create("hendrycks", "relu", keep)[0](KEY, (1, 1, n, 400))[0, 0]
    mask_key, z_key = jax.random.split(KEY)
    x = nn.relu(jax.random.normal(z_key, (1000, n))) * jax.random.bernoulli(mask_key, keep, (1000, n)) / keep
    assert float(jnp.square(x @ kernel).mean()) == pytest.approx(1, rel=0.03)


def test_names_and_activations_that_do_not_fit():
    with pytest.raises(DropbnError, match="Did you mean 'lsuv'"):
        initializers.create("lsvu")
    for activation in ("maxout", "prelu", "rrelu"):
        with pytest.raises(DropbnError, match="an activation of one number"):
            initializers.create("hendrycks", activation)


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
