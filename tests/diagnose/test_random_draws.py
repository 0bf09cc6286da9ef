"""Random draws of no registered noise: which are found, where they stand, and what they reach."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lint_models import CASES

from dropbn.diagnose import gap, lint, modes, recalibrate, shift, surgery
from dropbn.diagnose.linen import Model
from dropbn.errors import DropbnError
from dropbn.nn.noise import Dropout

X = jax.random.normal(jax.random.key(0), (64, 8))


class DropPath(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        return x * jax.random.bernoulli(self.make_rng("drop_path"), 0.5, (len(x), 1)) / 0.5


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.BatchNorm(use_running_average=not self.train)(x)
        return DropPath(name="path")(nn.Dense(8)(x), self.train), None


def _model(body):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = body(self, nn.Dense(8)(x), train)
            return nn.BatchNorm(name="last")(x, use_running_average=not train)

    return Net()


def _draws(body):
    layers = Model.of(_model(body)).layers(jax.eval_shape(_model(body).init, jax.random.key(0), X), X)
    found = layers.draws
    return {where.split()[0] if " " in where else "": norms for where, norms in found.items()}, layers


def _scanned(module, x, train):
    streams = {"params": True, "dropout": True, "drop_path": True}
    axes = {"params": 0, "batch_stats": 0}
    return nn.scan(Block, variable_axes=axes, split_rngs=streams, length=3)(train, name="layers")(x, None)[0]


FOUND = {
    "by hand": (
        lambda m, x, train: x + jax.random.normal(m.make_rng("noise"), x.shape) if train else x,
        {"": ["last"]},
    ),
    "a layer": (lambda m, x, train: DropPath(name="path")(x, train), {"path": ["last"]}),
    "jit": (lambda m, x, train: nn.jit(Block)(train, name="block")(x)[0], {"block/path": ["last"]}),
    "remat": (
        lambda m, x, train: nn.remat(Block)(train, name="block")(x)[0],
        {"block/path": ["last"]},
    ),
    "scan": (_scanned, {"layers/path": ["layers/BatchNorm_0", "last"]}),
    "cond": (
        lambda m, x, train: jax.lax.cond(
            x.sum() > 0, lambda y: DropPath(name="path")(y, train), lambda y: y, x
        ),
        {"path": ["last"]},
    ),
    "gamma": (
        lambda m, x, train: x * jax.random.gamma(m.make_rng("noise"), 2.0, x.shape) if train else x,
        {"": ["last"]},
    ),
    "a class that calls its parent": (
        lambda m, x, train: nn.SelfAttention(2, dropout_rate=0.5, deterministic=not train, name="attention")(
            x[:, None]
        )[:, 0],
        {"attention": ["last"]},
    ),
    "attention": (
        lambda m, x, train: nn.MultiHeadDotProductAttention(
            2, dropout_rate=0.5, deterministic=not train, name="attention"
        )(x[:, None], x[:, None])[:, 0],
        {"attention": ["last"]},
    ),
    "indices": (
        lambda m, x, train: x[jax.random.permutation(m.make_rng("noise"), len(x))] if train else x,
        {"": ["last"]},
    ),
}
KNOWN = {
    "a registered noise": lambda m, x, train: nn.Dropout(0.5)(x, deterministic=not train),
    "a constant key": lambda m, x, train: x @ jax.random.normal(jax.random.key(3), (8, 8)),
    "a parameter": lambda m, x, train: x * m.param("scale", nn.initializers.normal(), (8,)),
    "a draw that is not used": lambda m, x, train: (x, m.make_rng("noise") if train else None)[0],
}


@pytest.mark.parametrize("name", FOUND)
def test_a_draw_is_found_where_it_stands_with_what_it_reaches(name):
    body, wanted = FOUND[name]
    found, layers = _draws(body)
    assert found == wanted
    assert layers.test_draws == {} and len(layers.training_draws) == 1
    assert all("test_random_draws.py:" in where or "attention" in where for where in layers.draws)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_no_draw_is_not_found(name):
    found, _ = _draws(KNOWN[name])
    assert found == {}


def test_a_draw_behind_a_batch_normalization_does_not_reach_the_next():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(name="first")(DropPath(name="path")(x, train), use_running_average=not train)
            return nn.BatchNorm(name="second")(nn.Dense(4)(x), use_running_average=not train)

    found = Model.of(Net()).layers(jax.eval_shape(Net().init, jax.random.key(0), X), X).draws
    assert list(found.values()) == [["first"]]


def test_the_labelled_networks_have_no_draw_but_their_noises():
    """Those with a noise of their own are the ones that draw by hand."""
    for case in CASES[::6]:
        report = lint.check(case.model, jax.ShapeDtypeStruct(case.shape, jnp.float32))
        assert not report.unseen(), case.name


class RandomWeights(nn.Module):
    """Its matrix diag(m) with Var[m] = E[m] = 1 is no noise on an array of data."""

    @nn.compact
    def __call__(self, x, train):
        drawn = 2.0 * jax.random.bernoulli(self.make_rng("weights"), 0.5, (8,)) if train else jnp.ones(8)
        return x @ jnp.diag(drawn)


def test_each_report_names_what_it_does_not_understand():
    net = _model(lambda m, x, train: RandomWeights(name="path")(x, train))
    variables = net.init(jax.random.key(1), X)
    report = lint.check(net, X)
    assert report.title.endswith("0 noises, 1 batch normalization, 1 random draw not understood")
    [row] = report.unseen()
    assert row["noise"].startswith("path test_random_draws.py:") and row["norm"] == "last"
    assert report.unseen(["path *"]) == []
    with pytest.raises(
        AssertionError, match=r"not understood may shift batch normalizations:\npath .* -> last"
    ):
        lint.assert_no_shift(net, X)
    lint.assert_no_shift(net, X, accept_unseen=["path *"])
    # The model's own modes have it: over the batches, E[m^2] = 2.
    found = shift.predict(net, variables, [X] * 32)
    assert found.title == "Predicted variance shift" and found.rows[0]["ratio"] == pytest.approx(0.5, abs=0.1)
    y = (X[:, 0] > 0).astype(int)
    trained = {**variables, "batch_stats": {"last": {"mean": X.mean(0), "var": 2 * X.var(0)}}}
    advice = gap.explain(net, trained, [(X, y)], [(X, y)]).advice
    assert "belong to no registered noise (path test_random_draws.py:" in advice and "No noise" not in advice


def test_a_batch_normalization_of_another_class_is_found_by_what_it_keeps():
    class Copied(nn.Module):
        @nn.compact
        def __call__(self, x, use_running_average):
            mean = self.variable("batch_stats", "mean", jnp.zeros, (x.shape[-1],))
            var = self.variable("batch_stats", "var", jnp.ones, (x.shape[-1],))
            if use_running_average:
                return (x - mean.value) / jnp.sqrt(var.value + 1e-5)
            if not self.is_initializing():
                mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
                var.value = 0.9 * var.value + 0.1 * x.var(0)
            return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5)(x, deterministic=not train)
            x = Copied(name="copied")(x, not train)
            return nn.SpectralNorm(nn.Dense(2), name="spectral")(x, update_stats=train)

    variables = Net().init(jax.random.key(0), X)
    report = lint.check(Net(), X)
    assert [(row["code"], row["norm"]) for row in report.rows] == [
        ("DBN101", "copied"),
        ("DBN402", "spectral"),
    ]
    variables["batch_stats"]["copied"]["var"] = 2 * X.var(0)
    labelled = [(X, (X[:, 0] > 0).astype(int))]
    advice = gap.explain(Net(), variables, labelled, labelled).advice
    assert "is neither switched nor measured: spectral" in advice
    [row] = shift.measure(Net(), variables, [X]).rows
    assert row["layer"] == "copied" and row["ratio"] == pytest.approx(0.5, rel=1e-6)


def test_statistics_of_which_nothing_is_known_are_refused():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("batch_stats", "mean", jnp.zeros, (8,))
            self.variable("batch_stats", "var", jnp.ones, (8,))
            return x

    variables = Odd().init(jax.random.key(0), X)
    with pytest.raises(DropbnError, match="registry knows: register its type"):
        gap.explain(Odd(), variables, [(X, X[:, 0] > 0)], [(X, X[:, 0] > 0)])


class DropRows(nn.Module):
    """Drop path of somebody else: its flag has an unknown name, and test mode gives the input back."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, active):
        if not active:
            return x
        return (
            x * jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (len(x), 1)) / (1 - self.rate)
        )


class ByHand(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = DropRows(name="rows")(nn.Dense(8)(x), train)
        return nn.Dense(2)(nn.BatchNorm(name="bn")(x, use_running_average=not train))


def test_a_noise_drawn_by_hand_is_switched_where_test_mode_leaves_it_out():
    net, keys = ByHand(), {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    variables = net.init(keys, X)
    run = modes.apply(net, variables, X, mode=modes.Mode(False, "batch", False), rngs=keys)[0]
    again = modes.apply(
        net, variables, X, mode=modes.Mode(False, "batch", False), rngs={"dropout": jax.random.key(3)}
    )[0]
    np.testing.assert_array_equal(run, again)
    trained = {
        **variables,
        "batch_stats": recalibrate.recalibrate(net, variables, [X], "precise_bn", noise=True).batch_stats,
    }
    labelled = [(X, (X[:, 0] > 0).astype(int))]
    assert "no registered noise" not in gap.explain(net, trained, labelled, labelled).advice


def _outputs(model, variables, key):
    return model.apply(
        variables, X, train=True, rngs={"dropout": jax.random.key(key)}, mutable=["batch_stats"]
    )[0]


def test_surgery_of_a_noise_drawn_by_hand():
    net, keys = ByHand(), {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    variables = net.init(keys, X)
    plain = net.apply(variables, X, train=False)
    off = surgery.without_noise(net)
    np.testing.assert_array_equal(_outputs(off, variables, 0), _outputs(off, variables, 1))
    # The keys differ by the path, so the swapped noise is compared by its mean: Var of a mean of 64 rows.
    swapped = surgery.swap_noise(net, Dropout(1.0))
    np.testing.assert_array_equal(_outputs(swapped, variables, 0), _outputs(swapped, variables, 1))
    rates = surgery.with_rates(net, {"rows": 0.0})
    np.testing.assert_allclose(_outputs(rates, variables, 0), _outputs(off, variables, 1), atol=1e-6)
    moved = surgery.move_to_last_bn(net, X)
    assert not np.array_equal(_outputs(moved, variables, 0), _outputs(moved, variables, 1))
    assert lint.check(moved, X).errors() == []
    for model in (off, swapped, rates, moved):
        np.testing.assert_array_equal(model.apply(variables, X, train=False), plain)


class TwiceByHand(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = DropRows(name="first")(nn.Dense(8)(x), train)
        x = nn.BatchNorm(name="bn1")(x, use_running_average=not train)
        x = DropRows(name="second")(nn.Dense(8)(x), train)
        return nn.BatchNorm(name="bn2")(x, use_running_average=not train)


def test_noises_drawn_by_hand_share_a_target():
    net = TwiceByHand()
    variables = net.init(jax.random.key(0), X)
    moved = surgery.move_to_last_bn(net, X)  # The first one gets rate 0, the second one is moved.
    wanted = surgery.without_noise(net).apply(variables, X, train=True, mutable=["batch_stats"])[0]
    rows = np.asarray(_outputs(moved, variables, 0) / wanted)
    np.testing.assert_allclose(rows, rows[:, :1] * np.ones(8), rtol=1e-4)
    assert {*np.round(np.float64(rows[:, 0]) * (1 - DropRows().rate), 3)} == {0, 1}
    rows = {
        (row["noise"].split(" ")[0], row["norm"])
        for row in lint.check(surgery.with_rates(net, {}), X).errors()
    }
    assert rows == {("first", "bn1"), ("second", "bn2")}


def test_surgery_names_the_draws_that_it_does_not_reach():
    net = _model(FOUND["by hand"][0])
    keys = {name: jax.random.key(0) for name in ("params", "noise")}
    variables = net.init(keys, X)
    with pytest.warns(UserWarning, match="belong to no noise of their own stay: test_random_draws.py:"):
        surgery.without_noise(net).apply(variables, X, train=True, rngs=keys, mutable=["batch_stats"])
