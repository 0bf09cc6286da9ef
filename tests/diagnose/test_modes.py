"""Modes against the model's own flags, on models that know nothing of dropbn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_models import BREADTH, ConstructorFlags, Frozen, Jitted, SharedNorm

from dropbn.diagnose import modes, shift
from dropbn.errors import DropbnError
from dropbn.nn import noise

X = 1 + jax.random.normal(jax.random.key(0), (12, 4, 4, 2))
RNGS = {"dropout": jax.random.key(5)}
OFF_BATCH = modes.Mode(noise=False, batch_norm="batch", update=False)
ON_RUNNING = modes.Mode(noise=True, batch_norm="running", update=False)

breadth = pytest.mark.parametrize(("model", "flag", "on"), BREADTH, ids=lambda v: type(v).__name__)


def _init(model, flag, on):
    """Variables whose running statistics are neither 0 and 1 nor those of X."""
    variables = model.init(jax.random.key(1), X, **{flag: not on})
    keys = iter(jax.random.split(jax.random.key(2), 100))
    stats = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape), variables["batch_stats"]
    )
    return {**variables, "batch_stats": stats}


def _same(a, b, tolerance=1e-5):
    # XLA fuses differently under another program: bfloat16 keeps 8 bits.
    def check(p, q):
        loose = 2e-2 if p.dtype == jnp.bfloat16 else tolerance
        np.testing.assert_allclose(p.astype(np.float32), q.astype(np.float32), rtol=loose, atol=loose)

    jax.tree.map(check, a, b)


@breadth
def test_train_and_test_are_the_models_own(model, flag, on):
    variables = _init(model, flag, on)
    for mode, value in ((modes.TRAIN, on), (modes.TEST, not on)):
        output, stats = modes.apply(model, variables, X, mode=mode, rngs=RNGS)
        wanted, updated = model.apply(variables, X, **{flag: value}, rngs=RNGS, mutable=["batch_stats"])
        _same(output, wanted)
        _same(stats, updated["batch_stats"])


@breadth
def test_each_switch_moves_alone(model, flag, on):
    variables = _init(model, flag, on)

    def apply(mode):
        return modes.apply(model, variables, X, mode=mode, rngs=RNGS)

    test, stats = apply(modes.TEST)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    off_batch, stats = apply(OFF_BATCH)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    on_running, _ = apply(ON_RUNNING)
    train, _ = apply(modes.TRAIN)
    outputs = [test, off_batch, on_running, train]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert np.abs(np.asarray(one - other, np.float32)).max() > 1e-2
    # Freezing the update changes the statistics' fate and nothing else.
    frozen, _ = apply(modes.TRAIN.frozen)
    _same(frozen, train)


def test_off_batch_is_batch_normalization_of_the_undropped_input():
    model = ConstructorFlags()
    variables = _init(model, "train", True)
    params = variables["params"]
    output, _ = modes.apply(model, variables, X, mode=OFF_BATCH)
    h = np.asarray(X).reshape(12, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * params["BatchNorm_0"]["scale"]
    h = np.maximum(h + params["BatchNorm_0"]["bias"], 0)
    _same(output, h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], 1e-4)


def test_li_adjust_uses_running_statistics_and_moves_them():
    model = ConstructorFlags()
    variables = _init(model, "train", True)
    test, _ = modes.apply(model, variables, X, mode=modes.TEST)
    output, stats = modes.apply(model, variables, X, mode=modes.LI_ADJUST)
    np.testing.assert_array_equal(output, test)
    params, before = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    h = np.asarray(X, np.float64).reshape(12, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    for key, batch in (("mean", h.mean(0)), ("var", h.var(0))):
        _same(stats["BatchNorm_0"][key], np.float32(0.8 * np.asarray(before[key]) + 0.2 * batch))


def test_li_adjust_of_a_shared_norm_uses_the_given_statistics_twice():
    model = SharedNorm()
    variables = _init(model, "deterministic", False)
    test, _ = modes.apply(model, variables, X, mode=modes.TEST)
    output, stats = modes.apply(model, variables, X, mode=modes.LI_ADJUST)
    np.testing.assert_allclose(output, test, rtol=1e-6)
    h = np.asarray(X, np.float64).reshape(12, -1)
    before = variables["batch_stats"]["shared"]["mean"]
    first = 0.99 * np.asarray(before) + 0.01 * h.mean(0)
    seen = []
    modes.apply(model, variables, X, mode=modes.TEST, observe=lambda norm, x: seen.append(np.asarray(x)))
    np.testing.assert_allclose(
        stats["shared"]["mean"], 0.99 * first + 0.01 * seen[1].mean(0), rtol=1e-5, atol=1e-6
    )
    assert set(stats["shared"]) == {"mean", "var"}


def test_nn_jit_keeps_no_trace_of_another_mode():
    model = Jitted()
    variables = _init(model, "train", True)
    before = model.apply(variables, X, train=True, rngs=RNGS, mutable=["batch_stats"])
    for mode in (modes.TEST, OFF_BATCH, ON_RUNNING, modes.TRAIN):
        modes.apply(model, variables, X, mode=mode, rngs=RNGS)
    after = model.apply(variables, X, train=True, rngs=RNGS, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_test_mode_is_the_models_own_whatever_else_trains():
    """Noise outside a module, attention's own dropout, and statistics that are not BN's."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = x.reshape(len(x), 4, -1)
            if train:
                x = x + jax.random.normal(self.make_rng("dropout"), x.shape)
            x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=not train)(x, x)
            x = nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)
            return nn.BatchNorm()(x, use_running_average=not train)

    variables = _init(Model(), "train", True)
    wanted = Model().apply(variables, X)
    output, stats = modes.apply(Model(), variables, X, mode=modes.TEST)
    np.testing.assert_array_equal(output, wanted)
    _, frozen = modes.apply(Model(), variables, X, mode=OFF_BATCH, rngs=RNGS)
    for found in (stats, frozen):
        jax.tree.map(np.testing.assert_array_equal, found, variables["batch_stats"])
    with pytest.raises(DropbnError, match="stream that got no key"):
        modes.apply(Model(), variables, X, mode=OFF_BATCH)


def test_statistics_move_to_the_moments_of_what_a_mask_leaves():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm()(x, use_running_average=not train, mask=x[..., :1] > 1)

    variables = _init(Model(), "train", True)
    _, stats = modes.apply(Model(), variables, X, mode=modes.TRAIN)
    _, updated = Model().apply(variables, X, train=True, mutable=["batch_stats"])
    _same(stats, updated["batch_stats"])
    _, stats = modes.apply(Model(), variables, X, mode=modes.LI_ADJUST)
    left = np.asarray(X, np.float64)[np.asarray(X)[..., 0] > 1]
    for key, batch in (("mean", left.mean(0)), ("var", left.var(0))):
        before = np.asarray(variables["batch_stats"]["BatchNorm_0"][key], np.float64)
        np.testing.assert_allclose(stats["BatchNorm_0"][key], 0.99 * before + 0.01 * batch, rtol=1e-6)


@pytest.mark.parametrize("make", [noise.Dropout, noise.GaussianDropout, noise.Uout])
def test_our_noises_are_switched_too(make):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            return nn.BatchNorm()(make(0.5)(x, deterministic=deterministic), use_running_average=True)

    variables = Model().init(jax.random.key(0), X)
    off, _ = modes.apply(Model(), variables, X, mode=modes.TEST)
    on, _ = modes.apply(Model(), variables, X, mode=ON_RUNNING, rngs=RNGS)
    np.testing.assert_array_equal(off, Model().apply(variables, X))
    np.testing.assert_array_equal(on, Model().apply(variables, X, deterministic=False, rngs=RNGS))


def test_what_is_frozen_on_purpose_is_left_alone_and_named():
    model = Frozen()
    variables = _init(model, "train", True)
    with pytest.warns(UserWarning, match="'frozen' was constructed with use_running_average=True"):
        _, stats = modes.apply(model, variables, X, mode=modes.TRAIN, rngs=RNGS)
    jax.tree.map(np.testing.assert_array_equal, stats["frozen"], variables["batch_stats"]["frozen"])
    assert np.abs(stats["live"]["mean"] - variables["batch_stats"]["live"]["mean"]).max() > 1e-3


def test_a_subclass_that_calls_its_parent_is_observed_once():
    class Loud(nn.BatchNorm):
        @nn.compact
        def __call__(self, x, use_running_average=None):
            return 2 * super().__call__(x, use_running_average)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return Loud()(x, use_running_average=not train)

    seen = []
    variables = Model().init(jax.random.key(0), X)
    modes.apply(Model(), variables, X, mode=modes.TEST, observe=lambda norm, x: seen.append(norm.path))
    assert seen == [("Loud_0",)]


def test_further_arguments_are_given_once():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, factor, offset=0.0, *, scale=1.0):
            return scale * x * factor + offset

    y, _ = modes.apply(Scaled(), {}, X, args=(3.0,), kwargs={"scale": 2.0}, mode=modes.TEST)
    np.testing.assert_allclose(y, 6 * X)


def test_refusals():
    model = ConstructorFlags()
    variables = _init(model, "train", True)
    with pytest.raises(DropbnError, match="'Dropout_0' is on but got no random key"):
        modes.apply(model, variables, X, mode=modes.TRAIN, rngs={"params": jax.random.key(0)})
    with pytest.raises(DropbnError, match="no batch_stats for the batch normalization at 'BatchNorm_0'"):
        modes.apply(model, {"params": variables["params"]}, X, mode=modes.TEST)


def test_a_model_that_tells_its_mode_by_what_is_mutable_is_run_in_it():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            training = self.is_mutable_collection("batch_stats")
            x = nn.Dropout(0.5)(nn.Dense(6)(x.reshape(len(x), -1)), deterministic=not training)
            return nn.BatchNorm(use_running_average=not training)(x)

    variables = Net().init({"params": jax.random.key(1), **RNGS}, X)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    output, _ = modes.apply(Net(), variables, X, mode=modes.TEST)
    _same(output, Net().apply(variables, X))
    output, stats = modes.apply(Net(), variables, X, mode=modes.TRAIN, rngs=RNGS)
    wanted, updated = Net().apply(variables, X, rngs=RNGS, mutable=["batch_stats"])
    _same(output, wanted)
    _same(stats, updated["batch_stats"])


def test_what_says_training_is_asked_for_and_taken_from_the_answer():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, learn="yes"):
            return nn.BatchNorm()(x, use_running_average=learn != "yes")

    variables = _init(Net(), "learn", "yes")
    with pytest.raises(DropbnError, match=r"Which argument of Net\(x, learn\) says training"):
        modes.apply(Net(), variables, X, mode=modes.TEST)
    told = {"train_kwargs": {"learn": "yes"}, "test_kwargs": {"learn": "no"}}
    output, _ = modes.apply(Net(), variables, X, mode=modes.TEST, **told)
    _same(output, Net().apply(variables, X, learn="no"))
    # What one call has told is not taken for told by the next.
    given = Net(), variables, [X]
    assert shift.measure(*given, train_kwargs={}, test_kwargs={}).rows
    assert shift.measure((Net(), Net()), variables, [X]).rows
    with pytest.raises(DropbnError, match="says training"):
        shift.measure(*given)
    # A pair of the same model, and empty answers, say that both modes are meant to be one.
    wanted, _ = Net().apply(variables, X, mutable=["batch_stats"])
    for model, call in (((Net(), Net()), {}), (Net(), {"train_kwargs": {}, "test_kwargs": {}})):
        output, _ = modes.apply(model, variables, X, mode=modes.TEST, **call)
        _same(output, wanted)


def test_a_draw_of_no_noise_that_stays_on_is_said():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = x * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape) if train else x
            return nn.BatchNorm()(x, use_running_average=not train)

    variables = _init(Net(), "train", True)
    with pytest.warns(UserWarning, match=r"no registered noise stay on in this mode: test_modes\.py:"):
        modes.apply(Net(), variables, X, mode=OFF_BATCH, rngs=RNGS)
