"""The convolution in parts against `lax.conv_general_dilated`."""

import jax
import numpy as np
import pytest
from jax import lax

from dropbn.nn.kernels import convolution

DIMENSIONS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO


@pytest.mark.parametrize("images", [8, 32, 75])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (1, 1, 1), (1, 2, 1), (3, 1, 2)]
)
def test_value_and_both_gradients(images, kernel, stride, groups):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (images, 8, 8, 4))
    w = jax.random.normal(keys[1], (kernel, kernel, 4 // groups, 6))
    options = {"dimension_numbers": DIMENSIONS, "feature_group_count": groups}
    given = ((stride, stride), [(kernel // 2, kernel // 2)] * 2)

    def run(convolve):
        value, pull = jax.vjp(lambda x, w: convolve(x, w, *given, **options), x, w)
        return value, *pull(jax.random.normal(keys[2], value.shape))

    found, wanted = jax.jit(run, static_argnums=0), run(lax.conv_general_dilated)
    for part, of_plain in zip(found(convolution.conv_general_dilated), wanted, strict=True):
        # Sums of a few thousand products of order 1, in float32 and in another order.
        np.testing.assert_allclose(part, of_plain, rtol=1e-5, atol=2e-6 * np.abs(of_plain).max())


def test_of_a_vmapped_population():
    x = jax.random.normal(jax.random.key(0), (2, 40, 6, 6, 3))
    w = jax.random.normal(jax.random.key(1), (2, 3, 3, 3, 4))

    def gradient(convolve):
        def loss(w, x):
            return (convolve(x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS) ** 2).sum()

        return jax.vmap(jax.grad(loss))(w, x)

    found, wanted = gradient(convolution.conv_general_dilated), gradient(lax.conv_general_dilated)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
