"""The NNX Layers against the Linen ones, with the same weights and keys."""

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
from dropbn.nn import layers, noise, norm, order
from dropbn.nn.nnx import layers as nnx_layers
from dropbn.nn.nnx import noise as nnx_noise
from dropbn.nn.nnx import norm as nnx_norm
from dropbn.nn.nnx import variables

KEY = jax.random.key(7)
X = 0.5 + jax.random.normal(jax.random.key(1), (4, 6, 6, 3))
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


@pytest.mark.parametrize(
    "name", ["a block and a head", pytest.param("the other words", marks=pytest.mark.slow)]
)
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
    tested = linen.apply(now, X)
    np.testing.assert_array_equal(model(X, deterministic=True), tested)
    mixed, _ = linen.apply(now, X, True, False, mutable=["batch_stats"])
    np.testing.assert_array_equal(model(X, deterministic=True, use_running_average=False), mixed)
    nnx.update(model, variables.from_linen(now, model))
    model.eval()
    np.testing.assert_array_equal(model(X), tested)


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
