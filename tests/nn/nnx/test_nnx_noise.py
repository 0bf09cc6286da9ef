"""The NNX noises against the Linen ones and `flax.nnx.Dropout`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropbn.errors import DropbnError
from dropbn.nn import activations, noise
from dropbn.nn.nnx import activations as nnx_activations
from dropbn.nn.nnx import noise as nnx_noise

KEY = jax.random.key(7)
X = 0.5 + jax.random.normal(jax.random.key(1), (4, 6, 6, 3))
KINDS = {
    **{kind: (kind, {}) for kind in noise.KINDS},
    "dropout of channels": ("dropout", {"broadcast_dims": (1, -2)}),
    "dropout scaled at test": ("dropout", {"scale_at": "test"}),
    "dropout restored": ("dropout", {"restore": "exact"}),
    "uout of channels": ("uout", {"broadcast_dims": (1, 2)}),
    "small blocks": ("dropblock", {"block_size": 2}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_noise_is_its_linen_twin(name):
    kind, options = KINDS[name]
    linen, layer = noise.KINDS[kind](0.3, **options), nnx_noise.KINDS[kind](0.3, **options, rngs=nnx.Rngs(3))
    x = X.astype(jnp.bfloat16) if options else X
    y = layer(x, rngs=KEY)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, linen.apply({}, x, False, KEY))
    np.testing.assert_array_equal(layer(x, deterministic=True), linen.apply({}, x, True))
    # The first two keys of its own stream, which is a fork of the one that was given.
    stream = nnx.Rngs(3)["dropout"].fork()
    for _ in range(2):
        np.testing.assert_array_equal(layer(x), linen.apply({}, x, False, stream()))
    assert (layer.s2, layer.amount, layer.is_shared) == (linen.s2, linen.amount, linen.is_shared)
    assert layer.law == linen.law


def test_rrelu_and_prelu_are_their_linen_twins():
    layer, linen = nnx_activations.RReLU(2.0, 5.0, rngs=nnx.Rngs(0)), activations.RReLU(2.0, 5.0)
    np.testing.assert_array_equal(layer(X, rngs=KEY), linen.apply({}, X, False, KEY))
    np.testing.assert_array_equal(layer(X, deterministic=True), linen.apply({}, X, True))
    prelu = nnx_activations.PReLU(3)
    np.testing.assert_array_equal(prelu(X), jnp.where(X > 0, X, 0.25 * X))
    prelu.slope[...] = jnp.arange(3.0)
    np.testing.assert_array_equal(prelu(X), jnp.where(X > 0, X, jnp.arange(3.0) * X))


@pytest.mark.parametrize("flags", [{}, {"broadcast_dims": (1, 2)}, {"rng_collection": "noise"}])
def test_dropout_draws_the_masks_of_flax_from_the_same_streams(flags):
    ours, theirs = (
        kind(0.3, **flags, rngs=nnx.Rngs(1, noise=2)) for kind in (nnx_noise.Dropout, nnx.Dropout)
    )
    streams = lambda: nnx.Rngs(5), lambda: nnx.Rngs(0, noise=6), lambda: nnx.Rngs(8)["dropout"]
    for given in (None, None, *streams):
        a, b = (layer(X, rngs=given and given()) for layer in (ours, theirs))
        np.testing.assert_array_equal(a == 0, b == 0)
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_train_eval_and_views_switch_the_noise():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx_noise.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.inner(x)

    def is_on(model):
        return bool((model(X) != X).any())

    net = Net(nnx.Rngs(0))
    assert is_on(net)
    assert not is_on(nnx.view(net, deterministic=True)) and is_on(net)
    net.eval()
    assert not is_on(net) and (net.inner(X, deterministic=False) != X).any()
    net.train()
    assert is_on(net)
    net.set_attributes(nnx_noise.Dropout, deterministic=True)
    assert not is_on(net)
    net.inner.deterministic = None
    with pytest.raises(DropbnError, match="Dropout does not know whether it is on"):
        net(X)


def test_a_missing_key_or_a_wrong_amount_is_refused():
    for kind in nnx_noise.KINDS.values():
        with pytest.raises(DropbnError, match=f"{kind.__name__} is on but got no random key"):
            kind(0.5)(X)
        np.testing.assert_array_equal(kind(0.5)(X, deterministic=True), X)
        np.testing.assert_array_equal(kind(0.0)(X), X)
        for wrong in (-0.1, 1.1, np.float32(1.5), float("nan")):
            with pytest.raises(DropbnError, match="must lie in"):
                kind(wrong)
    with pytest.raises(DropbnError, match="got int for rngs"):
        nnx_noise.Dropout(0.5, rngs=3)
    with pytest.raises(DropbnError, match="Did you mean 'exact'"):
        nnx_noise.Dropout(0.5, restore="exactly")
    with pytest.raises(DropbnError, match="block_size"):
        nnx_noise.DropBlock(0.5, block_size=0)


def test_one_compilation_serves_every_traced_rate():
    traces = []

    @nnx.jit
    def step(layer, x):
        traces.append(1)
        return layer(x)

    layer, x = nnx_noise.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones(100_000)
    for rate in (0.1, 0.4, 0.9):
        layer.rate = nnx.data(jnp.asarray(rate))
        dropped = float((step(layer, x) == 0).mean())
        assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / x.size) ** 0.5)
    assert len(traces) == 1
    gradient = jax.grad(lambda x: nnx_noise.Dropout(1.0)(x, rngs=KEY).sum())(x)
    np.testing.assert_array_equal(gradient, 0)


def test_broadcast_dims_add_to_what_a_shared_noise_shares():
    """Blocks that all channels share: Cov[m, m'] of two channels is s2, and P(m = 0) stays the rate."""
    number, rate = 4000, 0.3
    layer = nnx_noise.DropBlock(rate, block_size=2, broadcast_dims=(-1,))
    m = np.asarray(layer(jnp.ones((number, 3, 3, 2)), rngs=KEY))
    np.testing.assert_array_equal(m[..., 0], m[..., 1])
    # Five standard errors of a share over independent examples, at each of the nine pixels.
    assert (np.abs((m[..., 0] == 0).mean(0) - rate) < 5 * (rate * (1 - rate) / number) ** 0.5).all()
    alike = nnx_noise.SpatialDropout(rate, broadcast_dims=(0,))(X, rngs=KEY) / X
    np.testing.assert_allclose(alike, jnp.broadcast_to(alike[:1, :1, :1], alike.shape), rtol=1e-6)
