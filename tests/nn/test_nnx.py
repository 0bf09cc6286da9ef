"""The NNX layers against the Linen ones, Flax's own and float64 NumPy."""

import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropbn.errors import DropbnError
from dropbn.nn import activations, layers, noise, norm, order
from dropbn.nn.nnx import activations as nnx_activations
from dropbn.nn.nnx import layers as nnx_layers
from dropbn.nn.nnx import noise as nnx_noise
from dropbn.nn.nnx import norm as nnx_norm
from dropbn.nn.nnx import variables

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
    for options in (
        {"use_scale": False, "use_bias": False},
        {"dtype": jnp.bfloat16},
        {"param_dtype": jnp.bfloat16},
    ):
        ours, theirs = (layer(X.astype(jnp.bfloat16), True) for layer in pair(**options))
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


S = layers.Size
ORDERS = {
    "a block and a head": (
        "[bn relu conv drop bn act conv | conv] gap drop dense sigmoid sparse",
        (S(8, 3, 2), S(8, 3), S(8, 1, 2), S(5, bias=True)),
    ),
    "the other words": (
        "{conv | maxpool} prelu se bn avgpool rrelu flatten maxout",
        (
            S(3, 3, groups=3, bias=True),
            S(kernel=3, padding=1),
            S(2, activation="silu"),
            S(kernel=4, stride=3, padding="ceil"),
        ),
    ),
}


def _twins(name, rngs, **options):
    text, sizes = ORDERS[name]
    both = order.parse(text), sizes
    parts = layers.Parts(
        functools.partial(norm.BatchNorm, **options), functools.partial(noise.Dropout, 0.3), "tanh"
    )
    nnx_parts = parts._replace(
        norm=functools.partial(nnx_norm.BatchNorm, **options), noise=functools.partial(nnx_noise.Dropout, 0.3)
    )
    return layers.Layers(*both, parts), nnx_layers.Layers(*both, nnx_parts, X.shape, rngs=rngs)


@pytest.mark.parametrize("name", ORDERS)
def test_layers_are_their_linen_twin_in_training_and_in_test_mode(name):
    linen, model = _twins(name, nnx.Rngs(0), group_size=2)
    given = jax.tree.map(lambda leaf: leaf + 0.1, variables.to_linen(model))
    nnx.update(model, variables.from_linen(given, model))
    keys = {path[-1]: nnx.clone(m.rngs)() for path, m in nnx.iter_modules(model) if hasattr(m, "rngs")}

    def with_the_same_key(run, args, kwargs, context):
        mine = {"rng": keys[context.module.name]} if isinstance(context.module, noise.Noise) else {}
        return run(*args, **kwargs, **mine) if context.method_name == "__call__" else run(*args, **kwargs)

    with nn.intercept_methods(with_the_same_key):
        y, updated = linen.apply(given, X, False, mutable=["batch_stats", "losses"])
    np.testing.assert_array_equal(model(X), y)
    now = given | {"batch_stats": updated["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, variables.to_linen(model), now)
    if "losses" in updated:
        np.testing.assert_array_equal(model.sparse1[...], updated["losses"]["sparse1"][-1])
    assert (model(X) != y).any()  # The streams have moved on.
    nnx.update(model, variables.from_linen(now, model))
    model.eval()
    np.testing.assert_array_equal(model(X), linen.apply(now, X))
    mixed, _ = linen.apply(now, X, True, False, mutable=["batch_stats"])
    np.testing.assert_array_equal(model(X, deterministic=True, use_running_average=False), mixed)


@pytest.mark.slow
def test_an_ensemble_of_layers_is_its_members():
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def create(rngs):
        return _twins("a block and a head", rngs)[1]

    model = create(nnx.Rngs(4))
    graph, state = nnx.split(model)
    members = [nnx.merge(graph, jax.tree.map(lambda leaf: leaf[i], state)) for i in range(2)]  # noqa: B023
    together = nnx.vmap(lambda model: model(X))(model)
    for member, y, mean in zip(members, together, model.bn2.mean[...], strict=True):
        np.testing.assert_allclose(y, member(X), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean, member.bn2.mean[...], rtol=1e-4, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_a_key_at_the_call_gives_each_noise_its_own_draw():
    text = order.parse("drop drop")
    parts = layers.Parts(nnx_norm.BatchNorm, functools.partial(nnx_noise.Dropout, 0.5))
    model, x = nnx_layers.Layers(text, (), parts, (1, 9), rngs=nnx.Rngs(0)), jnp.ones((2000, 9))
    y = model(x, rngs=KEY)
    # The same mask twice would drop half of the units, not three quarters; five standard errors.
    assert float((y == 0).mean()) == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / y.size) ** 0.5)
    np.testing.assert_array_equal(model(x, rngs=KEY), y)


def test_what_does_not_fit_is_named():
    linen, model = _twins("a block and a head", nnx.Rngs(0))
    given = linen.init(jax.random.key(2), X)
    with pytest.raises(DropbnError, match="params: only one of the two models has conv2/kernel"):
        params = {name: leaves for name, leaves in given["params"].items() if name != "conv2"}
        variables.from_linen({"params": params}, model)
    with pytest.raises(DropbnError, match=r"'bn1/mean' has the shape \(4,\), and \(3,\)"):
        stats = given["batch_stats"] | {"bn1": {"mean": jnp.ones(4), "var": jnp.ones(3)}}
        variables.from_linen({"batch_stats": stats}, model)
    text, parts = order.parse("[conv | conv]"), layers.Parts(nnx_norm.BatchNorm, nnx_noise.Dropout)
    model = nnx_layers.Layers(text, (S(3, 3, 2), S(3, 1, 2)), parts, (1, 1, 1, 3), rngs=nnx.Rngs(0))
    assert not hasattr(model, "shortcut_conv1")
    with pytest.raises(DropbnError, match=r"'shortcut_conv1' in .* was not made for it"):
        model(X)
    with pytest.raises(DropbnError, match="has 2 sized layers"):
        nnx_layers.Layers(text, (), parts, (1, 6, 6, 3), rngs=nnx.Rngs(0))


def test_linen_users_do_not_load_nnx():
    code = "import sys; from dropbn.nn import layers, noise, norm; sys.exit('flax.nnx' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
