"""A Linen module inside an NNX model, and the reverse, against the model that is Linen throughout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropbn.diagnose import gap, lint, modes, recalibrate, shift, surgery, uncertainty
from dropbn.errors import DropbnError
from dropbn.nn.noise import Uout

pytestmark = pytest.mark.usefixtures("same_draws")
BATCHES = [np.random.default_rng(seed).normal(0.3, 1.5, (50, 6)).astype(np.float32) for seed in range(2)]
X = BATCHES[0]


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, name="drop")(nn.Dense(8, name="dense")(x), deterministic=not train)
        return nn.BatchNorm(momentum=0.8, name="norm")(x, use_running_average=not train)


class NnxBody(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.drop = nnx.Linear(6, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.8, rngs=rngs)

    def __call__(self, x, train=False):
        x = self.drop(self.dense(x), deterministic=not train)
        return self.norm(x, use_running_average=not train)


class Linen(nn.Module):
    """The body is Linen's, or NNX's in a bridge."""

    bridged: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.2, name="drop")(x, deterministic=not train)
        x = nn.BatchNorm(name="norm")(x, use_running_average=not train)
        body = nnx.bridge.ToLinen(NnxBody, name="body") if self.bridged else Body(name="body")
        return nn.Dense(3, name="out")(body(x, train=train))


class Nnx(nnx.Module):
    """The body is Linen's in a bridge."""

    def __init__(self, rngs):
        self.drop, self.norm = nnx.Dropout(0.2, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.body, self.out = nnx.bridge.ToNNX(Body(), rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.training = False

    def __call__(self, x):
        options = {"mutable": ["batch_stats"]} if self.training else {}
        return self.out(self.body(self.norm(self.drop(x)), train=self.training, **options))


@pytest.fixture(scope="module")
def variables():
    """Of all three, with drawn statistics."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    found, drawn = Linen().init(rngs, X), np.random.default_rng(5)
    stats = jax.tree.map(lambda leaf: drawn.uniform(0.5, 1.5, leaf.shape).astype(np.float32), found)
    return {**found, "batch_stats": stats["batch_stats"]}


def _nnx(variables):
    model = nnx.bridge.lazy_init(Nnx(nnx.Rngs(0)), X)
    nnx.update(model, jax.tree.map(jnp.asarray, variables["params"]))
    nnx.update(model, jax.tree.map(jnp.asarray, variables["batch_stats"]))
    return model


def _given(api, variables):
    return (_nnx(variables),) if api == "nnx" else (Linen(bridged=True), variables)


def _same(found, wanted, tolerance=2e-6):
    for row, other in zip(found.rows, wanted.rows, strict=True):
        for name in other.keys() - {"line", "layers"}:
            if isinstance(other[name], float):
                assert row[name] == pytest.approx(other[name], tolerance, tolerance), (other, name)
            else:
                assert row[name] == other[name]


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_what_a_bridge_holds_is_seen(api, variables):
    given = _given(api, variables)
    found = shift.measure(*given, BATCHES)
    _same(found, shift.measure(Linen(), variables, BATCHES))
    assert [row["layer"] for row in found.rows] == ["norm", "body/norm"]
    x, stats = np.float64(np.concatenate(BATCHES)), variables["batch_stats"]
    dense = variables["params"]["body"]["dense"]
    hidden = (x - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["var"] + 1e-5) @ dense["kernel"]
    assert found.rows[1]["real_var"] == pytest.approx(hidden.var(0).mean(), rel=1e-5)
    _same(lint.check(given[0], X, variables=variables), lint.check(Linen(), X, variables=variables))


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.slow
def test_what_a_bridge_holds_is_predicted_repaired_and_explained(api, variables):
    given = _given(api, variables)
    _same(shift.predict(*given, BATCHES), shift.predict(Linen(), variables, BATCHES), 1e-4)
    for recipe in ("dropout_off", "li2018_moving", "precise_bn"):
        new = recalibrate.recalibrate(*given, BATCHES, recipe)
        wanted = recalibrate.recalibrate(Linen(), variables, BATCHES, recipe)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4), new.batch_stats, wanted.batch_stats)
    batches = [(x, np.arange(50) % 3) for x in BATCHES]
    found, wanted = (
        gap.explain(*model, batches, batches, num_samples=2) for model in (given, (Linen(), variables))
    )
    _same(found.shares, wanted.shares, 1e-4)
    assert found.unseen == wanted.unseen == "" and found.draws == ()
    _same(
        uncertainty.sample(*given, batches, num_samples=3),
        uncertainty.sample(Linen(), variables, batches, num_samples=3),
        1e-4,
    )


@pytest.mark.slow
def test_statistics_go_back_through_a_bridge(variables):
    model = _nnx(variables)
    recalibrate.recalibrate(model, BATCHES).apply_to(model)
    for row in shift.measure(model, BATCHES).rows:
        assert row["ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_bridge_keeps_the_modes(variables):
    mode = modes.Mode(True, "batch", True)
    keys = {"dropout": jax.random.key(0)}
    wanted = modes.apply(Linen(), variables, X, mode=mode, rngs=keys)
    for api in ("nnx", "linen"):
        found = modes.apply(*_given(api, variables), X, mode=mode, rngs=keys)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), found, wanted)


def test_what_surgery_does_not_reach_is_named(variables):
    model = _nnx(variables)
    with pytest.warns(UserWarning, match="Linen modules within are not edited: body. Edit each before"):
        changed = surgery.without_noise(model)
    assert next(row["noise"] for row in lint.check(changed, X).rows if row["norm"]) == "body/drop"
    with pytest.warns(UserWarning), pytest.raises(DropbnError, match="'body' is a Linen module: no noise"):
        surgery.move(model, {"drop": "body"})
    changed = surgery.swap_noise(Linen(bridged=True), to=Uout(0.1))
    with pytest.warns(UserWarning, match="The NNX module at 'body' is not edited: edit it before"):
        changed.apply(variables, X, mutable=["batch_stats"])
