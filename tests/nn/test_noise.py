"""Noise against its closed forms and against flax.linen.Dropout."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dropbn.errors import DropbnError
from dropbn.nn import laws, noise

KEY = {"dropout": jax.random.key(7)}
FAMILY = [
    (noise.Dropout(0.3), 0.3 / 0.7),
    (noise.Dropout(0.5), 1.0),
    (noise.Dropout(0.9), 9.0),
    (noise.GaussianDropout(0.3), 0.3 / 0.7),
    (noise.GaussianDropout(0.7), 0.7 / 0.3),
    (noise.SpatialDropout(0.3), 0.3 / 0.7),
    (noise.StochasticDepth(0.3), 0.3 / 0.7),
    (noise.DropBlock(0.3), 0.3 / 0.7),
    (noise.Uout(0.5), 0.25 / 3),
    (noise.Uout(1.0), 1 / 3),
]


@pytest.mark.parametrize(("layer", "s2"), FAMILY, ids=lambda v: type(v).__name__)
def test_mean_is_one_and_variance_is_s2(layer, s2):
    number = 1_000_000
    m = np.asarray(layer.apply({}, jnp.ones(number), deterministic=False, rngs=KEY), np.float64)
    centred = m - 1
    # Five standard errors of the mean and of the variance, the latter from the fourth moment.
    assert abs(m.mean() - 1) < 5 * np.sqrt(s2 / number)
    standard_error = np.sqrt((np.mean(centred**4) - s2**2) / number)
    assert abs(np.mean(centred**2) - s2) < 5 * standard_error + 1e-6 * s2
    assert layer.s2 == pytest.approx(s2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("broadcast_dims", [(), (1,)])
def test_dropout_draws_the_masks_of_flax(dtype, broadcast_dims):
    x = jax.random.normal(jax.random.key(1), (200, 300), dtype)

    class Model(nn.Module):
        layer: type
        rate: float

        @nn.compact
        def __call__(self, x):
            x = self.layer(self.rate, broadcast_dims, name="inner")(x, deterministic=False)
            return self.layer(self.rate, broadcast_dims)(x, deterministic=False)

    for rate in (0.1, 0.3, 0.5, 0.9):
        ours, theirs = (Model(layer, rate).apply({}, x, rngs=KEY) for layer in (noise.Dropout, nn.Dropout))
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=1e-6 if dtype == jnp.float32 else 2e-2
        )
        traced = jax.jit(lambda rate: Model(noise.Dropout, rate).apply({}, x, rngs=KEY))(rate)
        np.testing.assert_array_equal(traced == 0, theirs == 0)


_QUICK = [(True, "threefry2x32", False), (False, "rbg", True)]
_CONFIGURATIONS = itertools.product((False, True), ("threefry2x32", "rbg", "unsafe_rbg"), (False, True))


@pytest.mark.parametrize(
    ("x64", "impl", "partitionable"),
    [pytest.param(*c, marks=() if c in _QUICK else pytest.mark.slow) for c in _CONFIGURATIONS],
)
def test_the_masks_are_those_of_flax_in_every_configuration(x64, impl, partitionable):
    class Model(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            return self.layer(0.3, name="inner")(x, deterministic=False)

    with jax.enable_x64(x64), jax.threefry_partitionable(partitionable):
        keys = {"dropout": jax.random.key(7, impl=impl)}
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, *[jnp.float64] * x64):
            x = jnp.ones((40, 50), dtype)
            ours, theirs = (Model(layer).apply({}, x, rngs=keys) for layer in (noise.Dropout, nn.Dropout))
            assert ours.dtype == theirs.dtype == dtype
            np.testing.assert_array_equal(ours == 0, theirs == 0)
            one_ulp = float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=one_ulp)
            for layer in (noise.GaussianDropout(0.3), noise.Uout(0.3)):
                y = layer.apply({}, x, rngs=keys, deterministic=False)
                assert y.dtype == dtype and jnp.isfinite(y).all() and y.std() > 0


def test_traced_amounts_outside_their_range_do_as_the_docstrings_say():
    x = jax.random.normal(jax.random.key(0), (50,))

    def of(kind, amount, **flags):
        return jax.jit(lambda amount: kind(amount, **flags).apply({}, x, False, KEY["dropout"]))(amount)

    np.testing.assert_allclose(of(noise.Dropout, -0.5), x / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(of(noise.Dropout, 1.5), 0)
    assert jnp.isnan(of(noise.Dropout, 1.5, restore="sqrt_keep")).all()
    assert jnp.isinf(of(noise.GaussianDropout, 1.0)).all()
    for rate in (-0.5, 1.5):
        assert jnp.isnan(of(noise.GaussianDropout, rate)).all()
    # m - 1 has the other sign, and nothing else is different.
    np.testing.assert_allclose(of(noise.Uout, -0.5) + of(noise.Uout, 0.5), 2 * x, rtol=1e-5)
    assert (of(noise.Uout, 3.0) / x < 0).any()


@pytest.mark.parametrize(("layer", "s2"), FAMILY, ids=lambda v: type(v).__name__)
def test_identity_in_test_mode_and_without_noise(layer, s2):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    np.testing.assert_array_equal(layer.apply({}, x, deterministic=True), x)
    off = type(layer)(0.0)
    np.testing.assert_array_equal(off.apply({}, x, deterministic=False), x)
    traced = jax.jit(lambda amount: type(layer)(amount).apply({}, x, deterministic=False, rngs=KEY))
    np.testing.assert_array_equal(traced(0.0), x)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_one_compilation_serves_every_amount(kind):
    x = jax.random.normal(jax.random.key(0), (50,))
    traces = []

    def once(amount, key):
        traces.append(kind)
        return noise.KINDS[kind](amount).apply({}, x, deterministic=False, rngs={"dropout": key})

    step, amounts, draws = jax.jit(once), [0.1, 0.5, 0.9], jax.random.split(jax.random.key(3), 3)
    alone = [step(amount, key) for amount, key in zip(amounts, draws, strict=True)]
    assert len(traces) == 1
    assert len({float(y.sum()) for y in alone}) == 3
    together = jax.jit(jax.vmap(once))(jnp.array(amounts), draws)
    assert len(traces) == 2
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_gradients_at_the_ends_of_the_range(traced):
    x = jnp.array([1.0, -2.0, 3.0])

    def gradient(rate):
        return jax.grad(lambda x: noise.Dropout(rate).apply({}, x, deterministic=False, rngs=KEY).sum())(x)

    gradient = jax.jit(gradient) if traced else gradient
    np.testing.assert_array_equal(gradient(1.0), jnp.zeros(3))
    np.testing.assert_array_equal(gradient(0.0), jnp.ones(3))


@pytest.mark.parametrize("kind", noise.KINDS)
def test_a_missing_key_raises_in_apply_but_not_in_init(kind):
    layer, x = noise.KINDS[kind](0.5), jnp.ones(4)
    layer.init({"params": jax.random.key(0)}, x, deterministic=False)
    with pytest.raises(DropbnError, match="no random key"):
        layer.apply({}, x, deterministic=False, rngs={"params": jax.random.key(0)})
    with pytest.raises(DropbnError, match="no random key"):
        layer.apply({}, x, deterministic=False)
    layer.apply({}, x, False, jax.random.key(0))  # rng= stands for the stream


def test_amounts_outside_their_range_are_refused():
    for wrong in (-0.1, 1.1, np.float32(1.5), float("nan")):
        for kind in noise.KINDS.values():
            with pytest.raises(DropbnError, match="must lie in"):
                kind(wrong)
    with pytest.raises(DropbnError, match=r"\[0, 1\)"):
        noise.GaussianDropout(1.0)
    with pytest.raises(DropbnError, match="Did you mean 'test'"):
        noise.Dropout(0.5, scale_at="tests")


def test_scaling_at_test_time_is_the_same_up_to_keep():
    x = jax.random.normal(jax.random.key(0), (100,))
    inverted, original = noise.Dropout(0.3), noise.Dropout(0.3, scale_at="test")
    for deterministic in (False, True):
        a, b = (layer.apply({}, x, deterministic=deterministic, rngs=KEY) for layer in (inverted, original))
        np.testing.assert_allclose(0.7 * a, b, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1.5])
def test_restoring_the_variance(mean):
    """sqrt(keep) restores v where c = 0, and else gives v + (1 - keep) c^2; the exact factor always v."""
    n, rate = 400_000, 0.4
    x = mean + 0.8 * jax.random.normal(jax.random.key(0), (n, 1))
    moments = {}
    for restore in ("sqrt_keep", "exact"):
        layer = noise.Dropout(rate, restore=restore)
        np.testing.assert_array_equal(layer.apply({}, x, deterministic=True), x)
        y = layer.apply({}, x, deterministic=False, rngs=KEY)
        moments[restore] = float(y.mean()), float(y.var())
    v, c = float(x.var()), float(x.mean())
    keep = 1 - rate
    # The spread of a sample variance is below 2 v sqrt(2 / n) for these; five of them.
    assert moments["sqrt_keep"][1] == pytest.approx(v + (1 - keep) * c**2, rel=10 * (2 / n) ** 0.5)
    assert moments["sqrt_keep"][0] == pytest.approx(keep**0.5 * c, abs=0.01)
    assert moments["exact"] == pytest.approx((c, v), rel=10 * (2 / n) ** 0.5, abs=0.01)


def test_restoring_is_for_inverted_dropout_alone():
    with pytest.raises(DropbnError, match="Did you mean 'exact'"):
        noise.Dropout(0.5, restore="exactly")
    with pytest.raises(DropbnError, match="give one of them"):
        noise.Dropout(0.5, restore="exact", scale_at="test")
    zeros = noise.Dropout(1.0, restore="exact").apply({}, jnp.zeros((4, 2)), deterministic=False, rngs=KEY)
    np.testing.assert_array_equal(zeros, 0)


def test_broadcast_dims_drop_whole_channels():
    y = noise.Dropout(0.5, broadcast_dims=(1, 2)).apply({}, jnp.ones((8, 4, 4, 16)), False, jax.random.key(0))
    per_channel = np.asarray(y).reshape(8, 16, 16).transpose(0, 2, 1).reshape(-1, 16)
    assert (per_channel == per_channel[:, :1]).all()
    assert 0 < (per_channel[:, 0] == 0).mean() < 1


@pytest.mark.parametrize(("kind", "used", "other"), [("uout", "beta", "rate"), ("gaussian", "rate", "beta")])
def test_an_amount_that_the_kind_does_not_use_is_refused(kind, used, other):
    config = base.get_config().model.noise
    config.kind, config[other] = kind, 0.5
    with pytest.raises(DropbnError, match=f"uses {used}, which is 0, and not {other}=0.5"):
        laws.of_config(config)
    config[used] = 0.25
    assert laws.of_config(config).amount == 0.25
