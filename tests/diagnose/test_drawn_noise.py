"""Noise that a model draws by hand: what lint says of it, against closed forms and Monte Carlo."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.diagnose import lint, modes, recalibrate, surgery
from dropbn.diagnose.linen import Model
from dropbn.diagnose.noise_flow import follow, marks
from dropbn.nn import noise

random = jax.random
SHAPE = (32, 8, 8, 8)
ALPHA = -1.7580993408473766  # -lambda alpha of SELU (Klambauer et al. 2017)


def _alpha_dropout(x, key, keep=0.8):
    a = (keep + ALPHA**2 * keep * (1 - keep)) ** -0.5
    return a * jnp.where(random.bernoulli(key, keep, x.shape), x, ALPHA) - a * (1 - keep) * ALPHA


def _drop_block(x, key):
    kept = 1 - nn.max_pool(random.bernoulli(key, 0.1 / 9, x.shape).astype(x.dtype), (3, 3), (1, 1), "SAME")
    return x * kept * kept.size / kept.sum()


# name: (a noise, the ratio behind it for x of mean 0 and variance 1, which is 1 / (E[m^2] + Var[n])).
NOISES = {
    "where": (lambda x, k: jnp.where(random.bernoulli(k, 0.7, x.shape), x / 0.7, 0), 0.7),
    "drop path": (lambda x, k: x * random.bernoulli(k, 0.8, (len(x), 1, 1, 1)) / 0.8, 0.8),
    "whole channels": (lambda x, k: x * random.bernoulli(k, 0.5, (len(x), 1, 1, x.shape[-1])) * 2.0, 0.5),
    "normal": (lambda x, k: x * (1 + 0.5 * random.normal(k, x.shape)), 1 / 1.25),
    "uniform": (lambda x, k: x + x * random.uniform(k, x.shape, minval=-0.8, maxval=0.8), 3 / 3.64),
    "log-normal": (lambda x, k: x * jnp.exp(0.3 * random.normal(k, x.shape) - 0.045), math.exp(-0.09)),
    "gamma": (lambda x, k: x * random.gamma(k, 4.0, x.shape) / 4, 0.8),
    "additive": (lambda x, k: x + 0.5 * random.normal(k, x.shape), 1 / 1.25),
    "not rescaled": (lambda x, k: x * random.bernoulli(k, 0.7, x.shape), 1 / 0.7),
    "alpha dropout": (_alpha_dropout, 1.0),
    "half of the channels": (lambda x, k: x * (random.permutation(k, x.shape[-1]) < 4) * 2, 0.5),
    "half precision": (
        lambda x, k: x.astype(jnp.bfloat16) * random.bernoulli(k, 0.5, x.shape) * 2,
        0.5,
    ),
}


class Behind(nn.Module):
    """A noise before a BN."""

    noise: Callable

    @nn.compact
    def __call__(self, x, train=False):
        if train:
            x = self.noise(x, self.make_rng("noise"))
        return nn.BatchNorm(name="bn")(x, use_running_average=not train)


def _behind(name):
    return Behind(NOISES[name][0])


def _found(model, *inputs, **options):
    """{(code, way): ratio} of what lint finds on the way from a noise to a BN."""
    rows = lint.check(model, *(inputs or (jnp.zeros(SHAPE),)), **options).rows
    return {(row["code"], row["way"]): row["ratio"] for row in rows if row["norm"] and row["noise"]}


@pytest.mark.parametrize("name", NOISES)
def test_the_ratio_is_the_closed_form(name):
    tolerance = 0.02 if name == "half of the channels" else 1e-3  # It is drawn; the others are on a grid.
    assert _found(_behind(name)) == {("DBN101", "directly"): pytest.approx(NOISES[name][1], rel=tolerance)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NOISES])
def test_the_closed_form_is_what_the_noise_does(name):
    """Monte Carlo: the ratio is within five standard errors, by the spread over 32 parts of the draws."""
    noise, ratio = NOISES[name]
    x = random.normal(random.key(0), (32, 256, 4, 4, 8))
    y = jax.jit(jax.vmap(noise))(x, random.split(random.key(1), 32))
    ratios = np.var(np.asarray(x, np.float64), (1, 2, 3, 4)) / np.var(np.asarray(y, np.float64), (1, 2, 3, 4))
    assert abs(ratios.mean() - ratio) < 5 * ratios.std() / 32**0.5 + 2e-3


def _net(body):
    """A model of one BN behind `body(module, x, train)`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(name="bn")(body(self, x, train), use_running_average=not train)

    return Net()


def _mask(module, x, keep):
    return random.bernoulli(module.make_rng("noise"), keep, x.shape)


def _original_dropout(module, x, train):
    """Scaled in test mode, behind a learned scale that both modes have."""
    x = x * module.param("scale", lambda _: jnp.linspace(0.1, 2, 8))
    return x * _mask(module, x, 0.7) if train else 0.7 * x


def _shake_shake(module, x, train):
    a, b = (nn.Dense(8, name=name)(x) for name in "ab")
    share = random.uniform(module.make_rng("noise"), (len(x), 1, 1, 1)) if train else 0.5
    return share * a + (1 - share) * b


def _shaken_sum(module, x, train):
    """Shake-shake whose test mode rescales the sum, so that neither branch tells what the noise does."""
    a, b = (nn.Dense(8, name=name)(x) for name in "ab")
    if not train:
        return (a + b) / 2
    share = random.uniform(module.make_rng("noise"), (len(x), 1, 1, 1))
    return share * a + (1 - share) * b


def _reparametrized(module, x, train):
    """The deviation is data too, and test mode has none."""
    mean, deviation = nn.Dense(8, name="mean")(x), jnp.exp(nn.Dense(8, name="deviation")(x))
    return mean + deviation * random.normal(module.make_rng("noise"), x.shape) if train else mean


def _layer_scale(module, x, train):
    scale = module.param("scale", nn.initializers.normal(), (8,))
    return x * scale * _mask(module, x, 0.8) / 0.8 if train else x * scale


def _into_weights(module, x, train):
    if train:
        x = x + 0.5 * random.normal(module.make_rng("noise"), x.shape)
    return nn.Dense(8)(x)


def _drop_path(module, x, train):
    branch = nn.Dense(8)(nn.relu(x))
    return x + (
        branch * random.bernoulli(module.make_rng("noise"), 0.8, (len(x), 1, 1, 1)) / 0.8 if train else branch
    )


def _in_scan(module, x, train):
    def step(module, x, _):
        return (x * _mask(module, x, 0.8) / 0.8 if train else x), None

    return nn.scan(step, variable_broadcast="params", split_rngs={"noise": True}, length=3)(module, x, None)[
        0
    ]


def _in_cond(module, x, train):
    key = module.make_rng("noise") if train else random.key(0)
    noise = NOISES["normal"][0]
    return jax.lax.cond(len(x) > 3, lambda: noise(x, key) if train else x, lambda: x)


def _learned(module, x, train):
    scale = module.param("scale", lambda _: jnp.full(8, 0.5))
    return x + scale * random.normal(module.make_rng("noise"), x.shape) if train else x


# name: (body, what lint finds). Behind weights of mean 0 the ratio is what it is directly. In a loop, each
# step draws a noise of its own.
NETS = {
    "relative to test mode": (_original_dropout, {("DBN101", "directly"): 0.7}),
    # Each branch has E[m]^2 = 1/4 and E[m^2] = 1/3.
    "shake-shake": (_shake_shake, {("DBN101", "directly"): 0.75}),
    "a mean of two branches": (_shaken_sum, {("DBN101", "directly"): None}),
    "reparametrized": (_reparametrized, {("DBN103", "into a skip"): None}),
    "a learned factor cancels": (_layer_scale, {("DBN101", "directly"): 0.8}),
    "a learned amount is unknown": (_learned, {("DBN101", "directly"): None}),
    "through weights": (_into_weights, {("DBN102", "through weights"): 0.8}),
    "into a skip": (_drop_path, {("DBN103", "into a skip"): 0.8}),
    "scan": (_in_scan, {("DBN101", "directly"): 0.8}),
    "cond": (_in_cond, {("DBN101", "directly"): 0.8}),
    "remat": (
        lambda m, x, train: nn.remat(lambda m, x: _layer_scale(m, x, train))(m, x),
        {("DBN101", "directly"): 0.8},
    ),
}


def _sorted_with_a_parameter(module, x, train):
    """What is sorted beside the draw is a parameter, of which only the shape is known before training."""
    if not train:
        return x
    rank = module.param("rank", lambda _: jnp.arange(8.0))
    drawn = random.uniform(module.make_rng("noise"), (8,))
    return x * 2 * (jax.lax.sort((drawn, rank), num_keys=1)[1] < 4)


def _one_line_for_two_amounts(module, x, train):
    for keep in (0.9, 0.5):
        x = nn.Dense(8)(x * _mask(module, x, keep) / keep if train else x)
    return x


NETS["one line for two amounts"] = _one_line_for_two_amounts, {("DBN102", "through weights"): None}
NETS["a parameter without a value decides"] = _sorted_with_a_parameter, {("DBN101", "directly"): None}


@pytest.mark.parametrize("name", NETS)
def test_noise_within_a_network(name):
    body, wanted = NETS[name]
    found = _found(_net(body))
    assert found == {
        key: ratio if ratio is None else pytest.approx(ratio, rel=2e-3) for key, ratio in wanted.items()
    }


def test_variables_tell_a_learned_amount():
    model, x = _net(_learned), jnp.zeros(SHAPE)
    variables = model.init(random.key(0), x)
    assert _found(model, x, variables=variables) == {("DBN101", "directly"): pytest.approx(0.8, rel=1e-3)}


UNKNOWN = {
    "indices": lambda m, x, train: x[random.permutation(m.make_rng("noise"), len(x))] if train else x,
    "random weights": lambda m, x, train: (
        x @ (jnp.eye(8) * random.normal(m.make_rng("noise"), (8, 8)) if train else jnp.eye(8))
    ),
    "a choice of branch": lambda m, x, train: (
        jax.lax.cond(random.bernoulli(m.make_rng("noise")), nn.relu, jnp.tanh, x) if train else x
    ),
    "a selection of two arrays": lambda m, x, train: (
        jnp.where(_mask(m, x, 0.5), nn.relu(x), jnp.tanh(x)) if train else x
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_draw_that_does_not_scale_or_shift_is_named(name):
    rows = lint.check(_net(UNKNOWN[name]), jnp.zeros(SHAPE)).rows
    assert [(row["code"], row["norm"]) for row in rows] == [("DBN401", "bn")]
    assert "test_drawn_noise.py:" in rows[0]["noise"]


def test_a_draw_of_test_mode_is_named():
    always = _net(lambda m, x, train: x * (1 + random.normal(m.make_rng("noise"), x.shape)))
    assert [row["code"] for row in lint.check(always, jnp.zeros(SHAPE)).rows] == ["DBN207"]
    keys = {name: random.key(0) for name in ("params", "noise")}
    variables = always.init(keys, jnp.ones(SHAPE))
    with pytest.warns(UserWarning, match="belong to no noise of their own stay: test_drawn_noise.py:"):
        surgery.without_noise(always).apply(variables, jnp.ones(SHAPE), rngs=keys)


class _Leaky(nn.Module):
    """A leaky ReLU whose negative slope is drawn, behind a BN and before another."""

    shift: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = self.shift + nn.BatchNorm(use_running_average=not train, name="before")(x)
        slope = 0.25
        if train:
            slope = random.uniform(self.make_rng("dropout"), x.shape, maxval=0.5)
        x = jnp.where(x < 0, slope * x, x)
        x = nn.Dense(4, use_bias=False)(x) if self.shift else x
        return nn.BatchNorm(use_running_average=not train, name="bn")(x)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_noise_on_a_part_of_the_data_adds_what_it_does_there(shift):
    """Var[y] = E[f(z)^2] - E[f(z)]^2 and Var[m] E[z^2; z < 0] for z normal, by 10^7 draws of z."""
    z = shift + np.random.default_rng(0).normal(size=10**7)
    f, added = np.where(z < 0, 0.25 * z, z), 0.5**2 / 12 * np.square(z[z < 0]).sum() / z.size
    (row,) = [row for row in lint.check(_Leaky(shift), jnp.ones((8, 6))).rows if row["norm"] == "bn"]
    assert row["code"] == ("DBN102" if shift else "DBN101")
    assert row["ratio"] == pytest.approx(f.var() / (f.var() + added), abs=2e-4)
    if shift:
        variables = _Leaky(shift).init(random.key(0), jnp.ones((8, 6)))
        weights, var = variables["params"]["Dense_0"]["kernel"], np.full(4, 5.0)
        variables["batch_stats"]["bn"]["var"] = var
        rows = lint.check(_Leaky(shift), jnp.ones((8, 6)), variables=variables).rows
        (ratio,) = [row["ratio"] for row in rows if row["code"] == "DBN102"]
        assert 1 - ratio == pytest.approx(added * np.square(weights).sum() / var.sum(), rel=1e-3)


class _Mask(nn.Module):
    """Hides some rows of each example, and hands the padding on."""

    @nn.compact
    def __call__(self, x, padding):
        return x * (random.uniform(self.make_rng("dropout"), (*x.shape[:2], 1)) < 0.5), padding


class _Masked(nn.Module):
    """Calls a noise that returns two arrays, in training alone."""

    @nn.compact
    def __call__(self, x, padding, train=False):
        if train:
            x, padding = _Mask(name="mask")(x, padding)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return (x * padding[..., None]).mean(1)


def test_a_noise_that_returns_several_arrays_in_training_alone_is_switched():
    x, padding = random.normal(random.key(0), (16, 4, 3)), jnp.ones((16, 4)).at[:, 3].set(0)
    model, keys = _Masked(), {"dropout": random.key(1)}
    variables = model.init({"params": random.key(2), **keys}, x, padding)
    y, _ = modes.apply(model, variables, x, padding, mode=modes.Mode(False, "batch", False), rngs=keys)
    each = np.float64(x).reshape(-1, 3)
    clean = (x - each.mean(0)) / np.sqrt(each.var(0) + 1e-5) * padding[..., None]
    np.testing.assert_allclose(y, clean.mean(1), atol=1e-5)
    given = {"train": True, "mutable": ["batch_stats"], "rngs": keys}
    quiet, _ = surgery.without_noise(model).apply(variables, x, padding, **given)
    np.testing.assert_allclose(quiet, y, atol=1e-6)
    (row,) = lint.check(model, x, padding).rows
    assert (row["code"], row["norm"]) == ("DBN101", "bn") and row["ratio"] == pytest.approx(2, rel=1e-3)
    swapped = surgery.swap_noise(model, to=noise.Dropout(1.0)).apply(variables, x, padding, **given)[0]
    np.testing.assert_array_equal(swapped, 0)


def test_the_closed_form_takes_drawn_noise_out_of_the_statistics():
    """Against the input's variance. The statistics come from 20,000 draws and are known to some percent."""
    x = 0.5 + random.normal(random.key(0), (20_000, 8)) * jnp.linspace(0.5, 2, 8)
    for name in ("not rescaled", "alpha dropout"):
        model = _behind(name)
        variables = model.init({"params": random.key(1), "noise": random.key(2)}, x)
        trained = recalibrate.recalibrate(model, variables, [x], recipe="precise_bn", noise=True)
        variables = {**variables, "batch_stats": trained.batch_stats}
        remembered = trained.batch_stats["bn"]["var"]
        assert np.abs(remembered / np.var(x, 0) - 1).max() > 0.2
        mended = recalibrate.recalibrate(model, variables, [x], recipe="closed_form")
        assert np.all(np.abs(mended.batch_stats["bn"]["var"] - np.var(x, 0)) < 0.05 * remembered)


def test_a_registered_noise_is_not_followed_twice():
    model = _net(lambda m, x, train: nn.Dropout(0.5)(x, deterministic=not train))
    marked = marks.trace(Model.of(model), (jnp.zeros(SHAPE),), {})
    assert marked.at_test is None and [*follow(marked).noises] == ["Dropout_0"]
