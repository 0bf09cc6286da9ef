"""The NNX BatchNorm against float64 NumPy, the Linen one and Flax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropbn.errors import DropbnError
from dropbn.nn import norm
from dropbn.nn.nnx import norm as nnx_norm
from dropbn.nn.nnx import variables

X = 0.5 + jax.random.normal(jax.random.key(1), (4, 6, 6, 3))


def _norms(**options):
    layer, linen = nnx_norm.BatchNorm(3, **options, rngs=nnx.Rngs(0)), norm.BatchNorm(**options)
    given = jax.random.normal(jax.random.key(9), (4, 3))
    linens = {
        "params": {"scale": given[0], "bias": given[1]},
        "batch_stats": {"mean": given[2], "var": jnp.abs(given[3]) + 0.5},
    }
    nnx.update(layer, variables.from_linen(linens, layer))
    return layer, linen, linens


@pytest.mark.parametrize(("group_size", "mean"), [(0, 0.0), (2, 1e5)])
def test_groups_of_a_norm_against_numpy_and_linen(group_size, mean):
    layer, linen, given = _norms(group_size=group_size)
    x = mean + X * jnp.arange(1.0, 4)
    before = variables.to_linen(layer)["batch_stats"]
    y = layer(x)
    groups = np.split(np.asarray(x, np.float64), 4 // (group_size or 4))
    means, variances = ([f(g, axis=(0, 1, 2)) for g in groups] for f in (np.mean, np.var))
    scale, bias = (np.asarray(given["params"][k], np.float64) for k in ("scale", "bias"))
    wanted = [
        (g - m) / np.sqrt(v + 1e-5) * scale + bias for g, m, v in zip(groups, means, variances, strict=True)
    ]
    # At mean 1e5 a float32 input itself is 0.004 coarse, relative to standard deviations of 1 to 3.
    np.testing.assert_allclose(y, np.concatenate(wanted), atol=1e-4 if mean == 0 else 2e-2)
    for name, batch in (("mean", means), ("var", variances)):
        running = 0.9 * np.asarray(before[name]) + 0.1 * np.mean(batch, axis=0)
        np.testing.assert_allclose(getattr(layer, name)[...], running, rtol=1e-4)
    out, updated = linen.apply(given, x, False, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, out)
    jax.tree.map(np.testing.assert_array_equal, variables.to_linen(layer), {**given, **updated})
    layer.eval()
    np.testing.assert_array_equal(layer(x), linen.apply({**given, **updated}, x, True))


def test_groups_of_a_norm_that_span_devices():
    layer, linen, given = _norms(group_size=4, axis_name="batch")
    graph, state = nnx.split(layer)

    @functools.partial(jax.pmap, axis_name="batch", in_axes=(None, 0))
    def both(state, x):
        layer = nnx.merge(graph, state)
        return (layer(x), layer.mean[...]), linen.apply(given, x, False, mutable=["batch_stats"])

    (y, mean), (out, updated) = both(state, jnp.concatenate([X, X + 1, 2 * X, X]).reshape(8, 2, 6, 6, 3))
    np.testing.assert_allclose(y, out, rtol=1e-6, atol=1e-6)  # XLA may fuse the two differently.
    np.testing.assert_allclose(mean, updated["batch_stats"]["mean"], rtol=1e-6)
    assert np.abs(mean[0] - mean[2]).max() > 0.05  # Four images are two devices.


def test_a_norm_has_flaxs_options_and_gradients():
    def pair(**options):
        yield nnx_norm.BatchNorm(3, **options, rngs=nnx.Rngs(0))
        yield nnx.BatchNorm(3, **options, momentum=0.9, use_fast_variance=False, rngs=nnx.Rngs(0))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    ours, theirs = pair(use_scale=False, epsilon=0.1)
    slopes = [nnx.grad(lambda layer: (jnp.sin(layer(X)) * X).sum())(layer) for layer in (ours, theirs)]
    jax.tree.map(close, *slopes)
    close(ours(X), theirs(X))
    close(ours.var[...], theirs.var[...])
    half = jnp.bfloat16
    for options in ({"use_scale": False, "use_bias": False}, {"dtype": half}, {"param_dtype": half}):
        ours, theirs = (layer(X.astype(half), True) for layer in pair(**options))
        assert ours.dtype == theirs.dtype
        close(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=2e-2, atol=2e-2)


def test_a_norm_that_cannot_run_says_why():
    layer = nnx_norm.BatchNorm(3, group_size=3, rngs=nnx.Rngs(0))
    with pytest.raises(DropbnError, match="group_size=3 does not fit"):
        layer(X)
    with pytest.raises(DropbnError, match="no mask"):
        layer(X, mask=X > 0)
    with pytest.raises(DropbnError, match="of 3 channels gets an array of shape"):
        layer(X[..., :2])
    layer.use_running_average = None
    with pytest.raises(DropbnError, match="does not know which statistics"):
        layer(X)
