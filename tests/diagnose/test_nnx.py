"""The tools on NNX models: as on Linen models with the same weights, and as NNX itself computes."""

import jax
import jax.numpy as jnp
import linen_models
import nnx_models
import numpy as np
import pytest
from flax import nnx

from dropbn.diagnose import gap, lint, modes, recalibrate, shift, surgery, uncertainty
from dropbn.diagnose.call import Call
from dropbn.diagnose.nnx import Model
from dropbn.errors import DropbnError
from dropbn.nn import noise as linen_noise
from dropbn.nn.nnx import noise

BATCHES = [
    np.random.default_rng(seed).normal(0.3, 1.5, (23, 4, 4, 3)).astype(np.float32) for seed in range(3)
]
X, LABELS = BATCHES[0], np.arange(23) % 3


@pytest.fixture(scope="module")
def mnist():
    """A model of Flax's MNIST example, with drawn statistics."""
    model, drawn = nnx_models.Mnist(nnx.Rngs(0)), np.random.default_rng(6)
    stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    nnx.update(
        model, jax.tree.map(lambda leaf: drawn.uniform(0.5, 1.5, leaf.shape).astype(np.float32), stats)
    )
    return model


def test_moments_are_those_that_numpy_finds(mnist, monkeypatch):
    found = {row["layer"]: row for row in shift.measure(mnist, BATCHES).rows}
    seen, plain = {}, nnx.clone(mnist)
    plain.eval()
    names = {id(layer): path[-1] for path, layer in nnx.iter_modules(plain) if path}
    call = nnx.BatchNorm.__call__

    def record(self, x):
        seen.setdefault(names[id(self)], []).append(np.asarray(x, np.float64).reshape(-1, x.shape[-1]))
        return call(self, x)

    monkeypatch.setattr(nnx.BatchNorm, "__call__", record)
    for x in BATCHES:
        plain(x)
    assert seen.keys() == found.keys() == {"batch_norm1", "batch_norm2"}
    for name, parts in seen.items():
        x, layer = np.concatenate(parts), getattr(mnist, name)
        mean, var = (np.asarray(leaf[...], np.float64) for leaf in (layer.mean, layer.var))
        distance = np.sqrt(np.mean((x.mean(0) - mean) ** 2 / (var + layer.epsilon)))
        assert found[name]["count"] == len(x)
        for key, value in {
            "real_var": x.var(0).mean(),
            "moving_var": var.mean(),
            "mean_shift": distance,
        }.items():
            np.testing.assert_allclose(found[name][key], value, 1e-6, err_msg=key)


def test_modes_are_those_of_train_and_eval(mnist):
    plain, off = nnx.clone(mnist), nnx.clone(mnist)
    plain.eval()
    output, stats = modes.apply(mnist, X, mode=modes.TEST)
    np.testing.assert_allclose(output, plain(X), 1e-5, 1e-6)
    off.train(rate=0.0)
    output, stats = modes.apply(off, X, mode=modes.TRAIN, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(output, off(X), 1e-5, 1e-6)
    for name in ("batch_norm1", "batch_norm2"):
        np.testing.assert_allclose(stats[name]["var"], getattr(off, name).var[...], 1e-5)


_batches = [(x, LABELS) for x in BATCHES]
TOOLS = {
    "predict": lambda model: shift.predict(model, BATCHES),
    "lint": lambda model: lint.check(model, X),
    "recalibrate": lambda model: recalibrate.recalibrate(model, BATCHES, "li2018_moving"),
    "sample": lambda model: uncertainty.sample(model, [X], num_samples=2),
    "explain": lambda model: gap.explain(model, _batches, _batches, num_samples=2),
}


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=[pytest.mark.slow] * (tool in ("sample", "explain"))) for tool in TOOLS]
)
def test_the_model_of_the_user_stays_as_it_is(tool, mnist):
    for model in (mnist, nnx_models.DropoutBehindIf(nnx.Rngs(0))):
        graph, state = nnx.split(model)
        before = jax.tree.map(np.asarray, jax.tree.map(_data, nnx.to_pure_dict(state)))
        TOOLS[tool](model)
        after, state = nnx.split(model)
        assert after == graph  # attributes such as deterministic too
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(_data, nnx.to_pure_dict(state)))


EDITS = {
    "swapped": (lambda model: surgery.swap_noise(model, noise.Uout(0.6)), 1 / 1.12),  # s2 = 0.6^2 / 3
    "matched": (lambda model: surgery.swap_noise(model, matched=noise.GaussianDropout), 0.5),
    "set": (lambda model: surgery.with_rates(model, {"*Dropout*": 0.1}), 0.9),
    "off": (surgery.without_noise, None),
    "moved": (lambda model: surgery.move_to_last_bn(model, X), None),
}


@pytest.mark.parametrize("name", ["CallFlags", pytest.param("Scanned", marks=pytest.mark.slow)])
def test_surgery_changes_a_copy(name):
    twin = getattr(nnx_models, name)(nnx.Rngs(0))
    (graph, _), prefix = nnx.split(twin), "layers/" * (name == "Scanned")
    parameters = [path for path, _ in nnx.to_flat_state(nnx.state(twin, nnx.Param))]
    norm = prefix + ("second" if prefix else "BatchNorm_0")
    for edit, ratio in EDITS.values():
        model = edit(twin)
        rows = (row for row in lint.check(model, X).rows if row["noise"])
        found = {(row["noise"], row["norm"]): row["ratio"] for row in rows}
        wanted = {} if ratio is None else {(prefix + "Dropout_0", norm): ratio}
        if prefix and edit is EDITS["moved"][0]:  # The next layer's first BN is behind weights then.
            wanted = {(f"{norm}/moved_noises/0", "layers/first"): 0.5}
        assert found == pytest.approx(wanted)
        assert [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))] == parameters
    assert nnx.split(twin)[0] == graph
    run = nnx.jit(lambda model, x: model(x))
    model.eval()
    twin.eval()
    np.testing.assert_allclose(run(model, X), run(twin, X), 1e-5, 1e-6)
    model.train()
    assert np.any(run(model, X) != run(model, X))


def test_an_amount_may_be_traced():
    model = nnx_models.CallFlags(nnx.Rngs(0))

    @jax.jit
    def zeros(rate):
        changed = surgery.with_rates(model, {"*": rate})
        return (changed.Dropout_0(jnp.ones(10_000)) == 0).mean()

    for rate in (0.1, 0.7):  # +- 5 standard errors
        assert abs(zeros(jnp.float32(rate)) - rate) < 5 * np.sqrt(rate * (1 - rate) / 10_000)


def test_edits_that_do_not_fit_are_refused():
    model, linen = nnx_models.CallFlags(nnx.Rngs(0)), linen_models.CallFlags()
    streamless = nnx_models.Mnist(nnx.Rngs(0))
    refused = {
        "The model is of NNX, the noise Uout is not": lambda: surgery.swap_noise(
            model, linen_noise.Uout(0.1)
        ),
        "The model is of Linen, the noise Uout is not": lambda: surgery.swap_noise(linen, noise.Uout(0.1)),
        "AlphaDropout has no s2": lambda: surgery.swap_noise(model, matched=noise.AlphaDropout),
        "s2 = 1, which Uout does not reach": lambda: surgery.swap_noise(model, matched=noise.Uout),
        "Unknown noise 'Dropuot_0'": lambda: surgery.with_rates(model, {"Dropuot_0": 0.1}),
        "Unknown layer 'x'": lambda: surgery.move(model, {"Dropout_0": "x"}),
        "no random stream of its own": lambda: surgery.move(streamless, {"dropout1": "batch_norm1"}),
    }
    for sentence, edit in refused.items():
        with pytest.raises(DropbnError, match=sentence):
            edit()


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_new_statistics_are_put_into_the_model(mnist):
    model = nnx.clone(mnist)
    found = recalibrate.recalibrate(model, BATCHES)
    assert max(abs(row["ratio"] - 1) for row in shift.measure(model, BATCHES).rows) > 0.01
    assert found.apply_to(model) is model
    for row in shift.measure(model, BATCHES).rows:
        assert abs(row["ratio"] - 1) < 1e-5
    variables = {"params": {}, "batch_stats": {}}
    assert found.apply_to(variables) == {"params": {}, "batch_stats": found.batch_stats}
    with pytest.raises(DropbnError, match="not those of this model"):
        found.apply_to(nnx_models.CallFlags(nnx.Rngs(0)))
    with pytest.raises(DropbnError, match="not into a int"):
        found.apply_to(3)


def test_a_fresh_model_is_linted_by_its_shapes():
    fresh = nnx_models.Mnist(nnx.Rngs(0))
    shapes = nnx.eval_shape(lambda: nnx_models.Mnist(nnx.Rngs(0)))
    for model in (fresh, shapes):
        row = lint.check(model, X).rows[0]
        assert (row["code"], row["noise"], row["norm"]) == ("DBN101", "dropout1", "batch_norm1")
        assert row["ratio"] == pytest.approx(0.975) and row["assumption"].startswith("for inputs of mean 0")
        assert row["line"].startswith("nnx_models.py:")
    with pytest.raises(DropbnError, match="only shapes"):
        shift.predict(shapes, [X])


def test_every_stream_has_draws_of_its_own():
    """nnx.Dropout layers that share a tag, stacked ones, and other keys of the call."""

    class Ones(nnx.Module):
        def __init__(self, rngs):
            self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
            split = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs)))
            self.stacked = split(rngs)

        def __call__(self, x):
            return jnp.stack([*(drop(x) for drop in self.drops), *nnx.vmap(lambda d: d(x))(self.stacked)])

    mode = modes.Mode(True, "running", False)

    @jax.jit
    def output(key):
        return modes.apply(Ones(nnx.Rngs(0)), jnp.ones(64), mode=mode, rngs={"dropout": key})[0]

    def masks(seed):
        return {tuple(row) for row in np.asarray(output(jax.random.key(seed))).tolist()}

    assert len(masks(0)) == 5 and masks(0) == masks(0) and not masks(0) & masks(1)


def test_a_draw_without_a_key_is_refused():
    with pytest.raises(DropbnError, match="'Dropout_0/rngs' is drawn from but got no key"):
        modes.apply(nnx_models.CallFlags(nnx.Rngs(0)), X, mode=modes.TRAIN)
    with pytest.raises(DropbnError, match="'rngs' is drawn from but got no key"):
        modes.apply(nnx_models.Mnist(nnx.Rngs(0)), X, mode=modes.TRAIN)


class OwnNorm(nnx.Module):
    """A batch normalization of no known class, whose statistics and flag have names of its own."""

    def __init__(self, rngs):
        self.moving_mean, self.moving_var = nnx.BatchStat(jnp.zeros(48)), nnx.BatchStat(jnp.ones(48))
        self.training, self.momentum = True, 0.8

    def __call__(self, x):
        moving = self.moving_mean, self.moving_var
        mean, var = (x.mean(0), x.var(0)) if self.training else (leaf[...] for leaf in moving)
        if self.training:
            for leaf, new in zip(moving, (mean, var), strict=True):
                leaf[...] = self.momentum * leaf[...] + (1 - self.momentum) * new
        return (x - mean) / jnp.sqrt(var + 1e-4)


def test_a_norm_of_an_own_class_is_found_by_what_it_does():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.drop, self.norm = nnx.Dropout(0.2, rngs=rngs), OwnNorm(rngs)

        def __call__(self, x):
            return self.norm(self.drop(x.reshape(len(x), -1)))

    [row] = shift.predict(Net(nnx.Rngs(0)), BATCHES).rows
    x = np.concatenate([np.float64(x).reshape(len(x), -1) for x in BATCHES])
    assert row["layer"] == "norm" and row["real_var"] == pytest.approx(x.var(0).mean(), rel=1e-6)
    # v + s2 (v + c^2) with s2 = rate / (1 - rate), up to the draws of 48 x 69 values.
    assert row["moving_var"] == pytest.approx(1.5**2 + 0.25 * (1.5**2 + 0.3**2), rel=0.1)
    adjusted = recalibrate.recalibrate(Net(nnx.Rngs(0)), BATCHES, "li2018_moving").batch_stats["norm"]
    wanted = np.ones(48)
    for batch in BATCHES:
        wanted = 0.8 * wanted + 0.2 * batch.reshape(len(batch), -1).var(0)
    np.testing.assert_allclose(adjusted["moving_var"], wanted, 1e-5)


def test_other_state_that_training_moves_is_named():
    class Codes(nnx.Module):
        def __init__(self):
            self.codes, self.table = nnx.Variable(jnp.ones(3)), nnx.Variable(jnp.ones(3))
            self.training = True

        def __call__(self, x):
            y = self.codes[...] * self.table[...]
            if self.training:
                self.codes[...] = 0.9 * self.codes[...] + 0.1 * x.mean(0)
            return x + y

    class Net(nnx.Module):
        def __init__(self):
            self.quantizer = Codes()

        def __call__(self, x):
            return self.quantizer(x)

    (row,) = lint.check(Net(), np.ones((4, 3), np.float32)).rows
    assert (row["code"], row["layers"]) == ("DBN402", {"quantizer in 'state'": ""})


def test_a_model_may_take_one_key_at_its_call():
    class Net(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x, *, rngs: jax.Array, train: bool = False):
            kept = jax.random.bernoulli(rngs, 0.5, x.shape)
            return self.norm(2 * x * kept if train else x, use_running_average=not train)

    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    (row,) = lint.check(Net(), x[:4]).rows
    assert (row["code"], row["ratio"]) == ("DBN101", pytest.approx(0.5))
    # The mean over 6,000 values has a standard error below 3 %.
    (row,) = shift.predict(Net(), [x]).rows
    assert row["ratio"] == pytest.approx(0.5, abs=0.03)


def test_what_is_not_served_is_a_sentence():
    class Raw(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return jax.checkpoint(lambda norm, x: norm(x))(self.norm, x)

    fresh = nnx_models.CallFlags(nnx.Rngs(0))
    refused = {
        "What 'norm' saw in batch 0 is lost": lambda: shift.predict(Raw(nnx.Rngs(0)), [X]),
        "The new statistics of 'norm' are lost": lambda: modes.apply(
            Raw(nnx.Rngs(0)), X, mode=modes.LI_ADJUST
        ),
        "needs no pair": lambda: shift.measure((fresh, fresh), [X]),
        "takes no argument 'trian'": lambda: shift.measure(fresh, [X], trian=True),
        "'params/BatchNorm_0/bias' is missing": lambda: shift.measure(fresh, {"params": {}}, [X]),
        "still at mean 0, variance 1": lambda: shift.measure(fresh, [X]),
        "has no method 'encode'": lambda: shift.measure(fresh, [X], method="encode"),
    }
    for sentence, tool in refused.items():
        with pytest.raises(DropbnError, match=sentence):
            tool()


def test_equal_models_share_a_program():
    one, other = (Model.of(nnx_models.CallFlags(nnx.Rngs(seed)), Call())[0] for seed in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != Model.of(nnx_models.ConstructorFlags(nnx.Rngs(0)), Call())[0]
