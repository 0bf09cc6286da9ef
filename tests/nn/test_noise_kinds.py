"""Noises whose positions share draws, and alpha dropout, against their closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dropbn.diagnose import shift
from dropbn.errors import DropbnError
from dropbn.nn import laws, noise

KEY = jax.random.key(7)
RATE, SIDE = 0.3, 2
S2 = RATE / (1 - RATE)
SHAPE = (3, 4, 2)  # height, width, channels
BLOCKS = laws.DropBlock(RATE, SIDE)
# layer -> Cov[m, m'] of two positions of an example, from their distances in height, width and channel.
SHARED = {
    noise.Dropout(RATE): lambda h, w, c: S2 * (h == w == c == 0),
    noise.SpatialDropout(RATE): lambda h, w, c: S2 * (c == 0),
    noise.StochasticDepth(RATE): lambda h, w, c: S2,
    noise.DropBlock(RATE, block_size=SIDE): lambda h, w, c: BLOCKS.covariance(h, w) * (c == 0),
    # Blocks that are larger than the image.
    noise.DropBlock(RATE, block_size=6): lambda h, w, c: laws.DropBlock(RATE, 6).covariance(h, w) * (c == 0),
}
# By default DropBlock and alpha dropout, whose code is their own; the others by `pytest -m slow`.
LAYERS = [
    noise.DropBlock(RATE, block_size=SIDE),
    noise.AlphaDropout(RATE),
    *(
        pytest.param(layer, marks=pytest.mark.slow)
        for layer in SHARED
        if getattr(layer, "block_size", 0) != SIDE
    ),
]


def named(layer):
    return f"{type(layer).__name__}{getattr(layer, 'block_size', '')}"


def drawn(layer, x, key=KEY):
    return layer.apply({}, x, deterministic=False, rng=key)


@pytest.mark.parametrize("layer", SHARED, ids=named)
def test_the_covariance_of_m_between_positions(layer):
    number = 40_000
    m = np.asarray(drawn(layer, jnp.ones((number, *SHAPE))), np.float64).reshape(number, -1)
    at = np.indices(SHAPE).reshape(3, -1)
    distances = at[:, :, None] - at[:, None]
    wanted = np.vectorize(SHARED[layer])(*distances)
    products = (m - 1)[:, :, None] * (m - 1)[:, None]
    # Six standard errors, for the largest of 24 means and 300 covariances.
    assert (np.abs(m.mean(0) - 1) < 6 * (S2 / number) ** 0.5).all()
    assert (np.abs(products.mean(0) - wanted) < 6 * products.std(0) / number**0.5).all()
    across = (m[0::2] - 1).T @ (m[1::2] - 1) / (number / 2)  # Examples share nothing.
    assert (np.abs(across) < 6 * S2 * (2 / number) ** 0.5).all()


@pytest.mark.parametrize("layer", LAYERS, ids=named)
def test_the_ratio_of_a_norm_behind_is_that_of_the_law(layer):
    class Net(nn.Module):
        noise: nn.Module

        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm()(self.noise(x, deterministic=not train), use_running_average=not train)

    c, v, number = 0.7, 0.5, 20_000
    x = c + v**0.5 * jax.random.normal(jax.random.key(1), (number, *SHAPE))
    net = Net(layer)
    variables = net.init(jax.random.key(2), x[:2], False)
    row = shift.predict(net, variables, [x]).rows[0]
    y = np.asarray(drawn(layer, x), np.float64)
    # The error of a variance over examples whose positions and channels share draws; five of them.
    of_examples = np.square(y - y.mean()).mean((1, 2, 3))
    wanted = layer.law.affine.train_variance(c, v)
    assert row["moving_var"] == pytest.approx(wanted, abs=5 * of_examples.std() / number**0.5)
    assert row["ratio"] == pytest.approx(v / wanted, rel=0.03)
    assert y.mean() == pytest.approx(layer.law.affine.m * c, abs=5 * y.mean((1, 2, 3)).std() / number**0.5)


def test_alpha_dropout_has_the_two_values_of_the_paper():
    """a x + b and a alpha + b, by which a unit Gaussian keeps its moments (Klambauer et al. 2017)."""
    x = jax.random.normal(jax.random.key(1), (400_000,))
    y = np.asarray(drawn(noise.AlphaDropout(RATE), x), np.float64)
    alpha = -1.7580993408473766  # -lambda alpha of SELU, as PyTorch's alpha_dropout writes it.
    a = ((1 - RATE) + alpha**2 * RATE * (1 - RATE)) ** -0.5
    b = -a * RATE * alpha
    is_dropped = np.isclose(y, a * alpha + b, rtol=1e-6)
    np.testing.assert_allclose(
        y[~is_dropped], a * np.asarray(x, np.float64)[~is_dropped] + b, rtol=2e-5, atol=2e-6
    )
    assert is_dropped.mean() == pytest.approx(RATE, abs=5 * (RATE * (1 - RATE) / y.size) ** 0.5)
    assert y.mean() == pytest.approx(0, abs=5 / y.size**0.5)
    assert y.var() == pytest.approx(1, abs=5 * np.square(y).std() / y.size**0.5)
    by_channel = drawn(noise.AlphaDropout(RATE, broadcast_dims=(1,)), jnp.ones((50, 9)))
    assert (by_channel == by_channel[:, :1]).all() and len(np.unique(by_channel)) == 2


@pytest.mark.parametrize("layer", LAYERS, ids=named)
def test_traced_amounts_dtypes_and_vmap_draw_the_same(layer):
    x = 1 + jax.random.normal(jax.random.key(1), (5, *SHAPE))
    y = drawn(layer, x)

    @jax.jit
    def traced(rate, x):
        return drawn(layer.clone(rate=rate), x)

    np.testing.assert_allclose(traced(RATE, x), y, rtol=1e-5, atol=1e-6)
    rates = jnp.array([0.0, RATE, 0.9])
    many = jax.jit(jax.vmap(traced, (0, None)))(rates, x)
    np.testing.assert_array_equal(many[0], x)
    for rate, found in zip(rates.tolist(), many, strict=True):
        np.testing.assert_allclose(found, drawn(layer.clone(rate=rate), x), rtol=1e-5, atol=1e-6)
    low = drawn(layer, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), y, rtol=3e-2, atol=1e-2)


@pytest.mark.parametrize("layer", LAYERS, ids=named)
def test_the_derivative_is_m_and_finite_at_the_ends(layer):
    x = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    number = jnp.linspace(1, 2, x.size).reshape(x.shape)

    def weighted(x, rate):
        return (number * drawn(layer.clone(rate=rate), x)).sum()

    ones, zeros = drawn(layer, jnp.ones_like(x)), drawn(layer, jnp.zeros_like(x))
    np.testing.assert_allclose(jax.grad(weighted)(x, RATE), number * (ones - zeros), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.grad(weighted)(x, 0.0), number)
    by_x, by_rate = jax.jit(jax.grad(weighted, (0, 1)))(x, RATE)
    assert jnp.isfinite(by_x).all() and jnp.isfinite(by_rate)
    if not isinstance(layer, noise.AlphaDropout):
        np.testing.assert_array_equal(drawn(layer.clone(rate=1.0), x), 0)
        np.testing.assert_array_equal(jax.jit(jax.grad(weighted))(x, 1.0), 0)


def test_blocks_of_one_position_and_of_features_are_dropout():
    for shape, side in (((200, *SHAPE), 1), ((200, 30), 7)):
        x = jnp.ones(shape)
        np.testing.assert_array_equal(
            drawn(noise.DropBlock(RATE, block_size=side), x), drawn(noise.Dropout(RATE), x)
        )
    with pytest.raises(DropbnError, match="block_size must be 1 or more, got 0"):
        noise.DropBlock(RATE, block_size=0)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_a_config_makes_each_kind_with_its_fields(kind):
    config = base.get_config().model.noise
    config.kind = kind
    assert type(noise.create(config)(0.2)) is noise.KINDS[kind]
    if kind == "dropblock":
        assert noise.create(config)(0.2).block_size == 7
        config.block_size = 3
        assert noise.create(config)(0.2).block_size == 3
    if kind == "dropout":
        config.restore = "exact"
        assert noise.create(config)(0.2).restore == "exact"
    with pytest.raises(DropbnError, match=r"must lie in \[0, 1"):
        noise.create(config)(1.1)
