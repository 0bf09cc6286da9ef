"""The measured shift against float64 NumPy and against the papers' closed forms."""

import csv
import inspect
import io
import json

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_models import BREADTH, Body, Carried, ConstructorFlags, Scanned

from dropbn.diagnose import modes, shift
from dropbn.errors import DropbnError
from dropbn.nn import noise
from dropbn.nn.norm import BatchNorm

X = 1 + jax.random.normal(jax.random.key(0), (30, 4, 4, 2))


def _init(model, flag="train", on=True):
    variables = model.init(jax.random.key(1), X, **{flag: not on})
    return {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])}


def _inputs_of_norms(model, variables, **flags):
    """The input of every BN in test mode, call by call, as (values, channels) float64: sown, not reduced."""

    def sow(run, args, kwargs, context):
        own_signature = "train" in inspect.signature(context.orig_method).parameters
        if isinstance(context.module, nn.BatchNorm) and not own_signature:
            context.module.sow("intermediates", "input", args[0])
        return run(*args, **kwargs)

    with nn.intercept_methods(sow):
        _, sown = model.apply(variables, X, **flags, mutable=["intermediates"])
    flat = flax.traverse_util.flatten_dict(sown["intermediates"])
    return {
        "/".join(path[:-1]) + f"[call {call}]" * (len(calls) > 1): np.asarray(v, np.float64).reshape(
            -1, v.shape[-1]
        )
        for path, calls in flat.items()
        for call, v in enumerate(calls, 1)
    }


def _check(row, values, stats, tolerance=1e-5):
    assert row["count"] == len(values)
    assert row["real_var"] == pytest.approx(values.var(0).mean(), rel=tolerance)
    assert row["ratio"] == pytest.approx(row["real_var"] / row["moving_var"])
    mean, var = (np.asarray(stats[key], np.float64) for key in ("mean", "var"))
    assert row["moving_var"] == pytest.approx(var.mean(), rel=1e-6)
    distance = (values.mean(0) - mean) / np.sqrt(var + 1e-5)
    assert row["mean_shift"] == pytest.approx(np.sqrt((distance**2).mean()), rel=10 * tolerance)


@pytest.mark.parametrize(
    ("model", "flag", "on"),
    [case for case in BREADTH if not isinstance(case[0], Scanned)],
    ids=lambda v: type(v).__name__,
)
def test_pooled_is_the_population_for_any_split(model, flag, on):
    variables = _init(model, flag, on)
    wanted = _inputs_of_norms(model, variables, **{flag: not on})
    stats = flax.traverse_util.flatten_dict(variables["batch_stats"], is_leaf=lambda path, _: False, sep="/")
    for batches in ([X], [X[:7], X[7:9], X[9:]]):
        found = shift.measure(model, variables, iter(batches))
        assert {row["layer"] for row in found.rows} == set(wanted)
        for row in found.rows:
            of_layer = {key: stats[f"{row['layer'].partition('[')[0]}/{key}"] for key in ("mean", "var")}
            # A bfloat16 network rounds differently in one program and in another.
            _check(row, wanted[row["layer"]], of_layer, 2e-2 if "Half" in type(model).__name__ else 1e-5)


def test_layers_of_a_scan_are_rows_of_their_own_in_network_order():
    variables = _init(Scanned())
    found = shift.measure(Scanned(), variables, [X[:11], X[11:]])
    assert [row["layer"] for row in found.rows] == [
        f"layers/{name}[{i}]" for i in range(3) for name in ("first", "second")
    ]
    x, rows = X.reshape(30, -1), iter(found.rows)
    for i in range(3):  # The same three layers, one after another.
        one = jax.tree.map(lambda leaf, i=i: leaf[i], {k: v["layers"] for k, v in variables.items()})
        body, seen = Body(train=True), {}
        modes.apply(body, one, x, mode=modes.TEST, observe=lambda m, v, seen=seen: seen.update({m.name: v}))
        for name in ("first", "second"):
            _check(next(rows), np.asarray(seen[name], np.float64), one["batch_stats"][name], 1e-4)
        x, _ = Body(train=False).apply(one, x)


def test_a_norm_carried_through_a_scan_is_one_layer_that_every_step_calls():
    x = X.reshape(30, -1)
    once, dense = Body(train=False).init(jax.random.key(1), x), nn.Dense(3).init(jax.random.key(2), x)
    variables = {
        "params": {"layers": once["params"], "Dense_0": dense["params"]},
        "batch_stats": {"layers": jax.tree.map(lambda leaf: leaf + 0.3, once["batch_stats"])},
    }
    output, _ = modes.apply(Carried(), variables, X, mode=modes.TEST)
    wanted, _ = Carried().apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_allclose(output, wanted, rtol=1e-5)
    found = shift.measure(Carried(), variables, [X[:11], X[11:]])
    rows = {row["layer"]: row for row in found.rows}
    assert list(rows) == [f"layers/{name}[call {i}]" for name in ("first", "second") for i in (1, 2, 3)]
    own = {k: v["layers"] for k, v in variables.items()}
    for i in (1, 2, 3):
        record = {}
        modes.apply(Body(True), own, x, mode=modes.TEST, observe=lambda m, v, r=record: r.update({m.name: v}))
        for name, values in record.items():
            row = rows[f"layers/{name}[call {i}]"]
            _check(row, np.asarray(values, np.float64), own["batch_stats"][name], 1e-4)
        x, _ = Body(train=False).apply(own, x)


@pytest.mark.slow
def test_two_scans_side_by_side_keep_their_order():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            for name in ("a", "b"):
                axes = {"params": 0, "batch_stats": 0}
                layers = nn.scan(nn.remat(Body), axes, split_rngs={"params": True, "dropout": True}, length=2)
                x, _ = layers(train, name=name)(x, None)
            return x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return Encoder(name="encoder")(x.reshape(len(x), -1), train=train)

    rows = shift.measure(Model(), _init(Model()), [X]).rows
    assert [row["layer"] for row in rows] == [
        f"encoder/{scan}/{norm}[{i}]" for scan in "ab" for i in range(2) for norm in ("first", "second")
    ]


@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_exact_at_a_large_mean(mean):
    x = (mean + np.random.default_rng(0).normal(0, 3, (200, 5))).astype(np.float32)
    variables = {"batch_stats": {"mean": jnp.full(5, mean), "var": jnp.full(5, 2.0)}, "params": {}}
    layer = nn.BatchNorm(use_bias=False, use_scale=False)
    rows = shift.measure(layer, variables, [x[:90], x[90:]]).rows
    _check(rows[0], x.astype(np.float64), variables["batch_stats"])


def test_li2018_is_the_moving_average_of_batch_variances():
    model, variables = ConstructorFlags(), _init(ConstructorFlags())
    values = _inputs_of_norms(model, variables)["BatchNorm_0"]
    parts = np.split(values, [10, 20])
    average = parts[0].var(0)
    for part in parts[1:]:
        average = 0.8 * average + 0.2 * part.var(0)  # the layer's own momentum
    found = shift.measure(model, variables, [X[:10], X[10:20], X[20:]], estimator="li2018").rows[0]
    assert found["real_var"] == pytest.approx(average.mean(), rel=1e-5)
    assert found["count"] == 30
    assert found["real_var"] != pytest.approx(values.var(0).mean(), rel=1e-3)


class _OneLayer(nn.Module):
    """Noise, then BN directly (case a) or through fixed weights (case b)."""

    layer: nn.Module
    through: tuple = ()

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = self.layer(x, deterministic=deterministic)
        if self.through:
            x = x @ jnp.array(self.through).T
        return BatchNorm(momentum=0.0)(x, use_running_average=deterministic)


NOISES = {
    "Dropout(0.5)": noise.Dropout(0.5),
    "Dropout(0.2)": noise.Dropout(0.2),
    "GaussianDropout(0.4)": noise.GaussianDropout(0.4),
    "Uout(0.9)": noise.Uout(0.9),
}


def _ratio(layer, x, through=()):
    """Real / moving variance after one training step whose statistics are kept whole (momentum 0)."""
    model = _OneLayer(layer, through)
    variables = model.init(jax.random.key(0), x[:2])
    rngs = {"dropout": jax.random.key(1)}
    _, stats = modes.apply(model, variables, x, mode=modes.TRAIN, rngs=rngs)
    return shift.measure(model, {**variables, "batch_stats": stats}, [x]).rows[0]["ratio"]


@pytest.mark.parametrize("layer", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("c", [0.0, 1.5])
def test_case_a_is_the_closed_form(layer, c):
    """Li et al. 2018, eq. 8, for any noise: v / (v + s2 (c^2 + v))."""
    number, channels, v = 100_000, 8, 2.0
    x = c + np.sqrt(v) * jax.random.normal(jax.random.key(2), (number, channels))
    wanted = v / (v + layer.s2 * (c**2 + v))
    # A variance estimated from n values of kurtosis k has the relative error sqrt((k - 1) / n); the noisy
    # values' kurtosis is below 12 here (dropout 0.5 of centred normals: 6), and both variances are estimated.
    error = 5 * np.sqrt(2 * 11 / (number * channels))
    assert _ratio(layer, x) == pytest.approx(wanted, rel=error)


@pytest.mark.parametrize("layer", NOISES.values(), ids=NOISES)
def test_case_b_is_total_variance(layer):
    """Through weights: Var_train = Var_test + s2 sum_i w_i^2 E[x_i^2], for correlated inputs with a mean."""
    number, rng = 400_000, np.random.default_rng(0)
    mixing, mean = rng.normal(size=(6, 6)), rng.normal(size=6)
    x = (rng.normal(size=(number, 6)) @ mixing + mean).astype(np.float32)
    weights = rng.normal(size=(3, 6)) + 0.5
    covariance = mixing.T @ mixing
    test = np.einsum("oi,ij,oj->o", weights, covariance, weights)
    train = test + layer.s2 * (weights**2) @ (np.diag(covariance) + mean**2)
    error = 5 * np.sqrt(2 * 11 / number)
    found = _ratio(layer, x, tuple(map(tuple, weights)))
    assert found == pytest.approx(test.mean() / train.mean(), rel=error)
    assert found < 0.99


class TwoBlocks(nn.Module):
    """Dropout before each of two BNs, on images."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.Conv(6, (3, 3))(x)
            x = nn.Dropout(0.4)(x, deterministic=not train)
            x = nn.relu(nn.BatchNorm()(x, use_running_average=not train))
        return x


@pytest.mark.slow
def test_predict_is_where_running_statistics_settle():
    """At initialisation, against a moving average of momentum 0.99 that was run in train mode."""
    model, rng = TwoBlocks(), np.random.default_rng(0)
    batches = list(rng.normal(0.5, 1, (10, 64, 4, 4, 2)).astype(np.float32))
    fresh = model.init(jax.random.key(1), batches[0])
    found = shift.predict(model, fresh, batches)

    @jax.jit
    def step(variables, x, key):
        _, stats = modes.apply(model, variables, x, mode=modes.TRAIN, rngs={"dropout": key})
        return {**variables, "batch_stats": stats}

    variables, history = fresh, []
    for i in range(1500):  # 0.99^500 of the initial statistics is left where the record begins.
        variables = step(variables, batches[i % 10], jax.random.key(i))
        if i >= 500:
            history.append([np.mean(variables["batch_stats"][row["layer"]]["var"]) for row in found.rows])
    assert [row["layer"] for row in found.rows] == ["BatchNorm_0", "BatchNorm_1"]
    for row, average in zip(found.rows, np.mean(history, 0), strict=True):
        assert row["moving_var"] == pytest.approx(average, rel=0.02)
        assert row["ratio"] < 0.9
    # What was measured after those steps is what was predicted before them.
    after = shift.measure(model, variables, batches)
    for row, measured in zip(found.rows, after.rows, strict=True):
        assert row["ratio"] == pytest.approx(measured["ratio"], rel=0.04)
    lines = after.plot(label="measured", predicted=found).axes[0].lines
    assert [line.get_label() for line in lines[:2]] == ["measured", "predicted"]
    assert list(lines[1].get_ydata()) == [1 / row["ratio"] for row in found.rows]


def test_predict_knows_nothing_of_the_models_own_statistics():
    model, variables = ConstructorFlags(), _init(ConstructorFlags())
    fresh = model.init(jax.random.key(1), X)
    before = jax.tree.map(np.array, variables)
    found = shift.predict(model, variables, [X[:15], X[15:]])
    assert found.rows == shift.predict(model, fresh, iter([X[:15], X[15:]])).rows
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    with pytest.raises(DropbnError, match="one image has no batch statistics"):
        shift.predict(model, variables, [X[:1], X])
    # A last batch of one image has variance 0, as in Flax.
    row = shift.predict(model, variables, [X, X[:1]]).rows[0]
    assert row["moving_var"] == pytest.approx(shift.predict(model, variables, [X]).rows[0]["moving_var"] / 2)


def test_kinds_of_batches_and_results_that_write_themselves(tmp_path):
    model, variables = ConstructorFlags(), _init(ConstructorFlags())
    before = jax.tree.map(np.array, variables)
    found = shift.measure(model, variables, [X])
    same = [
        shift.measure(model, variables, [(X, 0)]),
        shift.measure(model, variables, [{"image": X}]),
        shift.measure(model, variables, [{"x": X}], inputs="x"),
        shift.measure(model, variables, [(0, X)], inputs=1),
        shift.measure(model, variables, [X - 1], inputs=lambda batch: batch + 1),
    ]
    assert all(other.rows[0]["ratio"] == pytest.approx(found.rows[0]["ratio"], rel=1e-4) for other in same)
    jax.tree.map(np.testing.assert_array_equal, variables, before)

    assert json.loads(found.to_json(tmp_path / "s.json")) == found.rows
    assert json.loads((tmp_path / "s.json").read_text()) == found.rows
    read = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [float(row["ratio"]) for row in read] == [row["ratio"] for row in found.rows]
    (axes,) = found.plot(tmp_path / "s.png", label="mine").axes
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    ratio = found.rows[0]["ratio"]
    assert list(axes.lines[0].get_ydata()) == [max(ratio, 1 / ratio)]
    assert axes.get_legend().get_texts()[0].get_text() == "mine"


def test_most_shifted_counts_both_directions():
    rows = [
        {"layer": name, "ratio": ratio} for name, ratio in [("a", 0.9), ("b", 3.0), ("c", 0.5), ("d", 1.0)]
    ]
    assert [row["layer"] for row in shift.Shift(rows).most_shifted(3)] == ["b", "c", "a"]


def test_refusals():
    model, variables = ConstructorFlags(), _init(ConstructorFlags())
    with pytest.raises(DropbnError, match="No batches"):
        shift.measure(model, variables, [])
    with pytest.raises(DropbnError, match="no batch normalization"):
        dense = nn.Dense(2)
        shift.measure(dense, dense.init(jax.random.key(0), X), [X])
    with pytest.raises(DropbnError, match="'BatchNorm_0' are still at mean 0, variance 1"):
        shift.measure(model, model.init(jax.random.key(0), X), [X])
    with pytest.raises(DropbnError, match="input of 'BatchNorm_0' is not finite"):
        shift.measure(model, variables, [X, X.at[0].set(jnp.nan)])
    for not_batches in (X, {"image": X}):
        with pytest.raises(DropbnError, match="put a single batch in a list"):
            shift.measure(model, variables, not_batches)
    with pytest.raises(DropbnError, match="does not vary"):
        shift.measure(model, variables, [X[:1]])
    with pytest.raises(DropbnError, match="Did you mean 'pooled'"):
        shift.measure(model, variables, [X], estimator="pool")
    with pytest.raises(DropbnError, match=r"keys \['x'\]"):
        shift.measure(model, variables, [{"x": X}])
