"""BatchNorm against flax.linen.BatchNorm and float64 NumPy, on one device and on eight."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.errors import DropbnError
from dropbn.nn import norm
from dropbn.nn.kernels import batch_norm, moments


def _variables(channels):
    values = jax.random.normal(jax.random.key(9), (4, channels))
    return {
        "params": {"scale": values[0], "bias": values[1]},
        "batch_stats": {"mean": values[2], "var": jnp.abs(values[3]) + 0.5},
    }


def _input(shape=(16, 3, 3, 5), mean=2.0):
    return mean + jax.random.normal(jax.random.key(1), shape) * jnp.arange(1, shape[-1] + 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_whole_batch_is_flax(dtype):
    x, variables = _input().astype(dtype), _variables(5)
    ours = norm.BatchNorm(dtype=dtype)
    theirs = nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_fast_variance=False, dtype=dtype)

    def run(layer, running):
        def output(params):
            y, updated = layer.apply(
                {**variables, "params": params}, x, use_running_average=running, mutable=["batch_stats"]
            )
            return (y.astype(jnp.float32) ** 2 * jnp.arange(5)).sum(), (y, updated)

        return jax.grad(output, has_aux=True)(variables["params"])

    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for running in (True, False):
        a, b = run(ours, running), run(theirs, running)
        assert a[1][0].dtype == dtype
        jax.tree.map(
            lambda p, q: np.testing.assert_allclose(
                p.astype(jnp.float32), q.astype(jnp.float32), rtol=tolerance, atol=tolerance
            ),
            a,
            b,
        )


@pytest.mark.parametrize("mean", [0.0, 1e5])
@pytest.mark.parametrize("group_size", [0, 4, 16])
def test_groups_on_one_device_against_numpy(group_size, mean):
    x, variables = _input(mean=mean), _variables(5)
    y, updated = norm.BatchNorm(group_size=group_size).apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    groups = np.split(np.asarray(x, np.float64), 16 // (group_size or 16))
    means, variances = ([f(g, axis=(0, 1, 2)) for g in groups] for f in (np.mean, np.var))
    scale, bias = (np.asarray(variables["params"][k], np.float64) for k in ("scale", "bias"))
    wanted = [
        (g - m) / np.sqrt(v + 1e-5) * scale + bias for g, m, v in zip(groups, means, variances, strict=True)
    ]
    # At mean 1e5 a float32 input itself is 0.004 coarse, relative to standard deviations of 1 to 5.
    np.testing.assert_allclose(y, np.concatenate(wanted), atol=1e-4 if mean == 0 else 2e-2)
    before = variables["batch_stats"]
    for key, batch in (("mean", means), ("var", variances)):
        running = 0.9 * np.asarray(before[key]) + 0.1 * np.mean(batch, axis=0)
        np.testing.assert_allclose(updated["batch_stats"][key], running, rtol=1e-4)


def _formula(across, epsilon, groups, scale, bias):
    axes = tuple(range(1, groups.ndim - 1))
    mean, var = groups.mean(axes, keepdims=True), groups.var(axes, keepdims=True)
    y = (groups - mean) / jnp.sqrt(var + epsilon) * scale + bias
    return y, mean.reshape(len(groups), -1), var.reshape(len(groups), -1)


def _loss(normalize, weights):
    def loss(*arguments):
        outputs = normalize(None, 1e-3, *arguments)
        return sum((jnp.sin(y) * weight).sum() for y, weight in zip(outputs, weights, strict=True))

    return loss


def _one_by_one(loss, arguments, along):
    return [jax.grad(loss, index)(*arguments) for index in range(3)]


def _members(loss, arguments, along):
    """Of a vmap over images and biases: gradients inside, and the gradient of all."""
    several = [jnp.stack([a, a + b]) for a, b in zip(arguments, along, strict=True)]
    several[1] = arguments[1]
    mapped = jax.vmap(loss, (0, None, 0))
    inside = jax.vmap(jax.grad(loss, (0, 1, 2)), (0, None, 0))(*several)
    return inside, jax.grad(lambda *given: mapped(*given).sum(), (0, 1, 2))(*several)


@pytest.mark.parametrize("derivatives", [_one_by_one, _members])
def test_derivatives_are_those_of_the_formula(derivatives):
    """In float64, also those of the statistics."""
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        arguments = tuple(map(jnp.asarray, (rng.normal(3, 2, (2, 4, 3, 3, 5)), *rng.normal(size=(2, 5)))))
        weights = tuple(map(jnp.asarray, (rng.normal(size=(2, 4, 3, 3, 5)), *rng.normal(size=(2, 2, 5)))))
        along = tuple(jnp.asarray(rng.normal(size=leaf.shape)) for leaf in arguments)
        found, wanted = (
            jax.jit(functools.partial(derivatives, _loss(normalize, weights)))(arguments, along)
            for normalize in (batch_norm.normalize, _formula)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), found, wanted)


@pytest.mark.slow
def test_shard_map_sums_its_gradients():
    """Devices share images and statistics, not scale and bias, whose gradients JAX has to sum, twice too."""
    x, (scale, bias) = _input((1, 16, 3, 3, 5)), _variables(5)["params"].values()
    mesh = jax.sharding.Mesh(jax.devices()[:8], "batch")
    spec = jax.P(None, "batch"), jax.P(), jax.P()

    def slope(across, *given):
        def loss(*given):
            return jnp.sin(batch_norm.normalize(across, 1e-3, *given)[0]).sum()

        def penalty(*given):
            return jnp.square(jax.grad(loss)(*given)).sum()

        return [jax.grad(function, (0, 1, 2))(*given) for function in (loss, penalty)]

    shared = functools.partial(slope, ("batch", None))
    found = jax.jit(jax.shard_map(shared, mesh=mesh, in_specs=spec, out_specs=[spec] * 2))(x, scale, bias)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        found,
        slope(None, x, scale, bias),
    )


@pytest.mark.parametrize("group_size", [0, 1, 2, 4, 8, 16])
def test_eight_devices_are_one(group_size):
    x, variables = _input(), _variables(5)
    layer = norm.BatchNorm(group_size=group_size)

    def loss(variables, x, layer):
        y, updated = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return (jnp.sin(y) * x).sum(), (y, updated)

    (_, (y, updated)), slope = jax.value_and_grad(loss, argnums=1, has_aux=True)(variables, x, layer)
    spread = norm.BatchNorm(group_size=group_size, axis_name="batch")

    @functools.partial(jax.pmap, axis_name="batch", in_axes=(None, 0))
    def on_device(variables, x):
        (_, (y, updated)), slope = jax.value_and_grad(loss, argnums=1, has_aux=True)(variables, x, spread)
        return y, jax.lax.pmean(updated, "batch"), slope

    y8, updated8, slope8 = on_device(variables, x.reshape(8, 2, *x.shape[1:]))
    np.testing.assert_allclose(y8.reshape(y.shape), y, atol=1e-4)
    np.testing.assert_allclose(slope8.reshape(x.shape), slope, atol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5), updated8, updated)


def test_the_dtype_of_the_output_is_that_of_flax():
    x = _input().astype(jnp.bfloat16)
    for flags in ({}, {"use_scale": False}, {"use_scale": False, "use_bias": False}, {"dtype": jnp.bfloat16}):
        ours, theirs = (
            layer(**flags).init_with_output(jax.random.key(0), x, True)[0]
            for layer in (norm.BatchNorm, nn.BatchNorm)
        )
        assert ours.dtype == theirs.dtype, flags


def test_parameters_of_another_shape_are_refused_as_flax_refuses_them():
    variables = _variables(5) | {"params": _variables(4)["params"]}
    for layer in (norm.BatchNorm(), nn.BatchNorm()):
        with pytest.raises(flax.errors.ScopeParamShapeError, match="scale"):
            layer.apply(variables, _input(), use_running_average=True)


def test_groups_that_do_not_fit_are_refused():
    assert norm.split_groups(0, 16) == (1, None)
    assert norm.split_groups(4, 16, 8) == (4, None)
    assert norm.split_groups(8, 4, 4) == (1, [[0, 1], [2, 3]])
    assert norm.split_groups(0, 4, 2) == (1, [[0, 1]])
    for group_size, images, devices in [(3, 16, 1), (32, 16, 1), (24, 16, 4), (48, 16, 4), (-4, 16, 1)]:
        with pytest.raises(DropbnError, match=f"group_size={group_size} does not fit"):
            norm.split_groups(group_size, images, devices)
    with pytest.raises(DropbnError, match="no mask"):
        norm.BatchNorm().init(jax.random.key(0), jnp.ones((4, 3)), False, mask=jnp.ones((4, 1)))


def test_who_observes_the_input_too_shares_its_moments():
    def reductions(observe):
        def both(x):
            y, *_ = batch_norm.normalize(None, 1e-5, x[None], jnp.ones(3), jnp.zeros(3))
            return y, observe(x)

        compiled = jax.jit(both).lower(jnp.ones((8, 4, 4, 3))).compile()
        return compiled.as_text().count(" reduce(")

    assert reductions(moments.of) == reductions(lambda x: x) > 0
