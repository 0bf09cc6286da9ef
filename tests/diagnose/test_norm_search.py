"""Batch normalizations of any class, found by what they do, and used by every tool as Flax's own."""

import functools
import types
from collections.abc import Callable
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_norms
import pytest

from dropbn.diagnose import lint, modes, norm_search, recalibrate, shift
from dropbn.diagnose.linen import Model
from dropbn.diagnose.norms import Leaf, Mask, Norm, Parameter
from dropbn.diagnose.registry import Switch

FLAT = np.float32(1 + np.random.default_rng(0).normal(size=(10, 6)))
LONG = np.float32(1 + np.random.default_rng(1).normal(size=(10, 4, 6)))
PADDING = np.float32(np.arange(4) >= 1 + np.arange(10)[:, None] % 4)
CONFIG = flax.core.freeze({"dim": 6, "momentum": 0.999, "epsilon": 0.002})
NO_MASK = Mask("")


class Own(NamedTuple):
    """A batch normalization of another class.

    Attributes:
      call: runs it on (x, train), under the name "norm".
      x: its input.
      norm: what is to be found.
      values: (values, channels) of an input, from which it takes statistics.
    """

    call: Callable
    x: np.ndarray
    norm: Norm
    values: Callable = lambda x: x.reshape(-1, x.shape[-1])


def _norm(switch, momentum, epsilon, shape=(6,), axis=-1, channels=6, names=("mean", "var"), **others):
    given = {"mean": Leaf(names[0]), "var": Leaf(names[1]), "mask": NO_MASK}
    given |= {"scale": Parameter("scale"), "bias": Parameter("bias")} | others
    return Norm(Switch(*switch), axis, momentum, epsilon, (channels,), shape, **given)


OWN = {
    "renorm": Own(
        lambda x, train: own_norms.BatchRenorm(name="norm")(x, use_running_average=not train),
        LONG,
        _norm(("use_running_average",), 0.95, 0.001),
    ),
    "padded": Own(
        lambda x, train: own_norms.Padded(CONFIG, name="norm")(x, PADDING[: len(x)], train),
        LONG,
        _norm(
            ("train", False),
            0.999,
            0.002,
            mask=Mask("input_paddings", True, 1),
            scale=Parameter("scale", 1.0),
        ),
        lambda x: x[PADDING == 0],
    ),
    "kept axes": Own(
        lambda x, train: own_norms.KeptAxes(6, 3, not train, name="norm")(x),
        LONG,
        _norm(
            ("deterministic",),
            0.9,
            1e-5,
            (1, 1, 6),
            names=("moving_mean", "moving_var"),
            scale=Parameter("gamma"),
            bias=Parameter("beta"),
        ),
    ),
    "unbiased": Own(
        lambda x, train: own_norms.Unbiased(name="norm")(x, training=train),
        FLAT,
        _norm(("training", False), 0.98, 1e-4, names=("running_mean", "running_variance"), is_unbiased=True),
    ),
    "one leaf": Own(
        lambda x, train: own_norms.OneLeaf(name="norm")(x, learning=train),
        FLAT,
        _norm(("learning", False), 0.95, 1e-5, mean=Leaf("moments", 0), var=Leaf("moments", 1)),
    ),
    "accumulating": Own(
        lambda x, train: own_norms.Accumulating(name="norm")(x, train),
        LONG,
        _norm(
            ("train", False),
            0.9,
            1e-3,
            (1, 1, 6),
            names=("mu", "nu"),
            scale=Parameter("gain"),
            bias=Parameter("offset"),
        ),
    ),
    "channels first": Own(
        lambda x, train: own_norms.ChannelsFirst("data", name="norm")(x, train),
        LONG,
        _norm(
            ("is_training", False),
            0.8,
            1e-5,
            (1, 4, 1),
            -2,
            4,
            ("batch_norm_running_mean", "batch_norm_running_var"),
            scale=Parameter(added=1.0),
            bias=Parameter(),
        ),
        lambda x: np.moveaxis(x, 1, -1).reshape(-1, 4),
    ),
}


def _each(names, *default):
    """A test for each name, of which some run by default; compilation makes the others slow."""
    marks = {name: () if name in default else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in names])


class Net(nn.Module):
    """A dropout before an own batch normalization."""

    own: Callable
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        return self.own(nn.Dropout(self.rate)(x, deterministic=not train), train)


def _found(model, x, **flags):
    """What is found of each module in a call."""
    variables, found = model.init(jax.random.key(0), x, **flags), {}

    def intercept(run, args, kwargs, layer):
        found[layer.path] = norm_search.norm_of(layer, args, kwargs)
        return run(*args, **kwargs)

    with Model.of(model).intercepting(intercept):
        given = {"rngs": {"dropout": jax.random.key(1)}, "mutable": ["batch_stats"]}
        jax.eval_shape(lambda x: model.apply(variables, x, **flags, **given), x)
    return {"/".join(path): norm for path, norm in found.items() if norm}


@_each(OWN, "renorm", "padded", "accumulating")
def test_a_batch_normalization_of_another_class_is_known(name):
    own = OWN[name]
    assert _found(Net(own.call), own.x) == {"norm": own.norm}


def test_it_is_the_same_in_training_and_in_half_precision():
    own = OWN["renorm"]
    assert _found(Net(own.call), own.x, train=True) == {"norm": own.norm}
    half = jnp.bfloat16(own.x)
    assert _found(Net(lambda x, train: own.call(x, train).astype(jnp.bfloat16)), half) == {"norm": own.norm}


LOOK_ALIKES = {
    "spectral": lambda x, train: nn.SpectralNorm(nn.Dense(6), name="norm")(x, update_stats=train),
    "ghost": lambda x, train: own_norms.Ghost(name="norm")(x, train),
    "act": lambda x, train: own_norms.ActNorm(name="norm")(x, train),
    "averages": lambda x, train: own_norms.Averages(name="norm")(x, train),
    "codebook": lambda x, train: own_norms.Codebook(name="norm")(x, train),
    "whitening": lambda x, train: own_norms.Whitening(name="norm")(x, train),
}


@_each(LOOK_ALIKES, "spectral", "ghost", "averages", "whitening")
def test_other_moving_state_is_named_and_not_measured(name):
    rows = lint.check(Net(LOOK_ALIKES[name]), FLAT).rows
    assert [(row["code"], row["norm"]) for row in rows] == [
        ("DBN403" if name in ("ghost", "whitening") else "DBN402", "norm")
    ]


def test_one_without_a_flag_is_frozen():
    net = Net(lambda x, train: own_norms.FrozenNorm(name="norm")(x))
    (norm,) = _found(net, FLAT).values()
    assert norm.switch is None and norm.epsilon == 1e-5
    rows = lint.check(net, FLAT).rows
    assert [(row["code"], row["norm"]) for row in rows] == [("DBN304", "norm")]
    variables = _variables(net, FLAT)
    (row,) = shift.measure(net, variables, [FLAT]).rows
    running = np.float64(variables["batch_stats"]["norm"]["var"])
    assert row["ratio"] == pytest.approx(np.float64(FLAT).var(0).mean() / running.mean(), rel=1e-6)
    with pytest.warns(UserWarning, match="'norm' uses its running statistics in training too"):
        output, _ = modes.apply(net, variables, FLAT, mode=modes.Mode(False, "batch", False))
    np.testing.assert_array_equal(output, net.apply(variables, FLAT))


def _variables(net, x):
    """Variables whose statistics are neither 0 and 1 nor those of the data."""
    variables, drawn = net.init(jax.random.key(0), x), np.random.default_rng(2)

    def moved(path, leaf):
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        # Between two batches, accumulators are empty.
        is_moved = is_float and path[-1].key not in ("sum", "squares")
        return leaf + jnp.float32(drawn.uniform(0.1, 0.5, leaf.shape)) if is_moved else leaf

    return jax.tree_util.tree_map_with_path(moved, variables)


def _plain(net, variables, x, train, **others):
    """The model's own `apply`, over an axis of one device."""
    run = lambda x: net.apply(variables, x, train, mutable=["batch_stats"], **others)  # noqa: E731
    output, updated = jax.vmap(run, axis_name="data", in_axes=0)(x[None])
    return output[0], jax.tree.map(lambda leaf: leaf[0], updated["batch_stats"])


def _statistics(own, stats):
    """(mean, variance), each (channels,), in float64."""
    leaves = [stats["norm"][leaf.name] for leaf in (own.norm.mean, own.norm.var)]
    parts = (own.norm.mean.part, own.norm.var.part)
    leaves = [leaf if part is None else leaf[part] for leaf, part in zip(leaves, parts, strict=True)]
    return [np.float64(leaf).reshape(-1) for leaf in leaves]


@_each(OWN, "padded")
def test_measured_shift_and_new_statistics_are_numpys(name):
    own = OWN[name]
    net, values = Net(own.call), own.values(np.float64(own.x))
    variables = _variables(net, own.x)
    mean, var = _statistics(own, variables["batch_stats"])
    (row,) = shift.measure(net, variables, [own.x]).rows
    distance = (values.mean(0) - mean) / np.sqrt(var + own.norm.epsilon)
    assert row["layer"] == "norm" and row["count"] == len(values)
    assert row["ratio"] == pytest.approx(values.var(0).mean() / var.mean(), rel=1e-6)
    assert row["mean_shift"] == pytest.approx(np.sqrt(np.square(distance).mean()), rel=1e-5)
    new = recalibrate.recalibrate(net, variables, [own.x]).batch_stats
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, variables["batch_stats"])
    for found, wanted in zip(_statistics(own, new), (values.mean(0), values.var(0)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    for leaf in {*variables["batch_stats"]["norm"]} - {own.norm.mean.name, own.norm.var.name}:
        np.testing.assert_array_equal(new["norm"][leaf], variables["batch_stats"]["norm"][leaf])


@_each(OWN, "unbiased")
def test_predicted_statistics_are_those_of_plain_training(name):
    own = OWN[name]
    net, keys = Net(own.call), {"dropout": jax.random.key(3)}
    variables = _variables(net, own.x)
    (row,) = shift.predict(net, variables, [own.x], rngs=keys).rows
    folded = {"dropout": jax.random.fold_in(keys["dropout"], 0)}
    before = _statistics(own, variables["batch_stats"])
    after = _statistics(own, _plain(net, variables, own.x, True, rngs=folded)[1])
    kept = own.norm.momentum
    _, var = ((new - kept * old) / (1 - kept) for new, old in zip(after, before, strict=True))
    assert row["moving_var"] == pytest.approx(var.mean(), rel=1e-6 / (1 - kept))


@_each(OWN, "padded")
def test_each_switch_does_what_the_layer_itself_does(name):
    own = OWN[name]
    net, quiet, keys = Net(own.call), Net(own.call, 0.0), {"dropout": jax.random.key(3)}
    variables = _variables(net, own.x)

    def check(mode, plain):
        found = modes.apply(net, variables, own.x, mode=mode, rngs=keys)
        close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
        jax.tree.map(close, found, plain)

    def plain(net, train):
        return _plain(net, variables, own.x, train, rngs=keys)

    given = variables["batch_stats"]
    without = plain(quiet, True)
    check(modes.TRAIN, plain(net, True))
    check(modes.TEST, (plain(net, False)[0], given))
    check(modes.Mode(False, "batch", True), without)
    check(modes.Mode(False, "batch", False), (without[0], given))
    _, moved = modes.apply(net, variables, own.x, mode=modes.LI_ADJUST, rngs=keys)
    for found, wanted in zip(_statistics(own, moved), _statistics(own, without[1]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@_each(OWN, "padded")
def test_lint_sees_the_noise_before_it(name):
    own = OWN[name]
    rows = lint.check(Net(own.call), own.x, variables=_variables(Net(own.call), own.x)).rows
    assert [(row["code"], row["noise"], row["norm"]) for row in rows] == [("DBN101", "Dropout_0", "norm")]


def test_its_parameters_count_in_the_ratio_of_lint():
    """Behind 0.6 + 1.4 z of an own BN, and of Flax's with the same parameters, dropout shifts alike."""

    class Deeper(nn.Module):
        norm: nn.Module

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(self.norm(x, train))
            x = nn.Dense(3, use_bias=False)(nn.Dropout(0.5)(x, deterministic=not train))
            return nn.BatchNorm(use_running_average=not train)(x)

    class Known(nn.BatchNorm):
        def __call__(self, x, train):
            return super().__call__(x, use_running_average=not train)

    own, known = Deeper(own_norms.Accumulating()), Deeper(Known(epsilon=1e-3))
    variables = _variables(own, FLAT)
    scale, bias, variables["batch_stats"]["BatchNorm_0"]["var"] = map(jnp.full, (6, 6, 3), (1.4, 0.6, 20.0))
    variables["params"]["norm"] = {"gain": scale, "offset": bias}
    like = {"params": {"scale": scale, "bias": bias}}
    like["batch_stats"] = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
    like = {name: {**variables[name], "norm": like[name]} for name in variables}
    ratios = [
        row["ratio"]
        for model, given in ((own, variables), (known, like))
        for row in lint.check(model, FLAT, variables=given).rows
        if row["norm"] == "BatchNorm_0"
    ]
    assert len(ratios) == 2 and ratios[0] == pytest.approx(ratios[1], rel=1e-6)
    w, v = variables["params"]["Dense_0"]["kernel"], variables["batch_stats"]["BatchNorm_0"]["var"]
    second = np.square(np.maximum(0.6 + 1.4 * np.random.default_rng(0).normal(size=10**6), 0)).mean()
    wanted = 1 - second * np.square(w).sum() / np.sum(v)
    assert ratios[0] == pytest.approx(wanted, abs=5e-3 * (1 - wanted))


def test_one_that_reads_its_mode_elsewhere_is_named():
    class Phased(nn.Module):
        @nn.compact
        def __call__(self, x, phase):
            mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
            var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
            used = mean.value, var.value
            if phase == "fit":
                used = x.mean(0), x.var(0)
                mean.value, var.value = 0.9 * mean.value + 0.1 * used[0], 0.9 * var.value + 0.1 * used[1]
            return (x - used[0]) / jnp.sqrt(used[1] + 1e-5)

    own = lambda x, train: Phased(name="own")(x, "fit" if train else "score")  # noqa: E731
    both = Net(lambda x, train: own(OWN["unbiased"].call(x, train), train))
    assert [(row["code"], row["norm"]) for row in lint.check(both, FLAT).rows] == [
        ("DBN101", "norm"),
        ("DBN403", "own"),
    ]
    assert [row["layer"] for row in shift.measure(both, _variables(both, FLAT), [FLAT]).rows] == ["norm"]


def test_one_in_another_collection_is_named():
    class Stateful(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            mean = self.variable("state", "mean", jnp.zeros, x.shape[-1:])
            var = self.variable("state", "var", jnp.ones, x.shape[-1:])
            used = (x.mean(0), x.var(0)) if train else (mean.value, var.value)
            if train:
                mean.value, var.value = 0.9 * mean.value + 0.1 * used[0], 0.9 * var.value + 0.1 * used[1]
            return (x - used[0]) / jnp.sqrt(used[1] + 1e-5)

    net = Net(lambda x, train: Stateful(name="own")(x, train))
    assert [(row["code"], row["norm"]) for row in lint.check(net, FLAT).rows] == [
        ("DBN403", "own in 'state'")
    ]


class Elsewhere(nn.Module):
    """A spectral norm and a codebook, whose running state is outside `batch_stats`."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.SpectralNorm(nn.Dense(6), collection_name="spectral", name="spectral")(x, update_stats=train)
        return Codes(name="codes")(x, train)[0]


class Codes(nn.Module):
    """The nearest of some codes, which follow the data as moving averages, and their distance."""

    @nn.compact
    def __call__(self, x, train):
        table = self.variable("constants", "table", jnp.ones, 6)
        codes = self.variable("vq", "codes", lambda: jnp.arange(12.0).reshape(2, 6))
        nearest = jnp.argmin(jnp.square(x[:, None] - codes.value).sum(-1), -1)
        y = codes.value[nearest] * table.value
        if train:
            members = jax.nn.one_hot(nearest, 2)
            codes.value += 0.1 * (members.T @ x - codes.value)
        return y, jnp.square(x - y).mean()


def test_other_state_outside_batch_stats_is_named():
    net = Elsewhere()
    rows = lint.check(net, FLAT).rows
    assert [(row["code"], {*row["layers"]}) for row in rows] == [
        ("DBN402", {"codes in 'vq'", "spectral in 'spectral'"})
    ]


def test_a_field_without_a_hash_is_no_obstacle():
    class Configured(nn.Module):
        config: types.SimpleNamespace

        @nn.compact
        def __call__(self, x, train):
            mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
            var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
            used = (x.mean(0), x.var(0)) if train else (mean.value, var.value)
            if train:
                mean.value += self.config.rate * (used[0] - mean.value)
                var.value += self.config.rate * (used[1] - var.value)
            return (x - used[0]) / jnp.sqrt(used[1] + 1e-5)

    for rate in (0.1, 0.3):
        config = types.SimpleNamespace(rate=rate)
        net = Net(lambda x, train, config=config: Configured(config, name="own")(x, train))
        assert _found(net, FLAT)["own"].momentum == 1 - rate
