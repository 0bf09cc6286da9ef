"""New statistics against float64 NumPy, layer by layer and recipe by recipe."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_models import BREADTH, ConstructorFlags

from dropbn.diagnose import modes, recalibrate, shift
from dropbn.errors import DropbnError
from dropbn.nn import noise

X = 1 + jax.random.normal(jax.random.key(0), (96, 6))
SPLIT = [X[:32], X[32:64], X[64:]]


class Net(nn.Module):
    """Dropout before each of two BNs, the second behind a nonlinearity of the first."""

    @nn.compact
    def __call__(self, x, train=False):
        for i in (1, 2):
            x = nn.Dense(5, name=f"dense{i}")(x)
            x = nn.Dropout(0.5)(x, deterministic=not train)
            x = nn.BatchNorm(momentum=0.8, name=f"bn{i}")(x, use_running_average=not train)
            x = nn.relu(x)
        return x


def _init():
    variables = Net().init(jax.random.key(1), X)
    stats = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    return {**variables, "batch_stats": stats}


VARIABLES = _init()


def _dense(x, i):
    layer = VARIABLES["params"][f"dense{i}"]
    return np.asarray(x, np.float64) @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])


def _relu_of_norm(h, mean, var):
    return np.maximum((h - mean) / np.sqrt(var + 1e-5), 0)  # scale 1, bias 0 as initialised


def _check(found, wanted, tolerance=1e-5):
    for name, (mean, var) in wanted.items():
        np.testing.assert_allclose(found.batch_stats[name]["var"], var, rtol=tolerance)
        np.testing.assert_allclose(found.batch_stats[name]["mean"], mean, rtol=tolerance, atol=tolerance)


def _old(name):
    return tuple(np.asarray(VARIABLES["batch_stats"][name][key], np.float64) for key in ("mean", "var"))


@pytest.mark.parametrize("batches", [SPLIT, [X], [X[:5], X[5:]]], ids=len)
def test_dropout_off_is_the_population_of_recalibrated_inputs(batches):
    h1 = _dense(X, 1)
    h2 = _dense(_relu_of_norm(h1, h1.mean(0), h1.var(0)), 2)
    found = recalibrate.recalibrate(Net(), VARIABLES, batches)
    _check(found, {"bn1": (h1.mean(0), h1.var(0)), "bn2": (h2.mean(0), h2.var(0))})
    assert (found.num_images, found.num_passes) == (96, 3)  # Two layers, and a pass that moves nothing.
    for row, name, h in zip(found.rows, ("bn1", "bn2"), (h1, h2), strict=True):
        old_mean, old_var = _old(name)
        assert (row["layer"], row["count"]) == (name, 96)
        assert row["ratio"] == pytest.approx(h.var(0).mean() / old_var.mean(), rel=1e-5)
        distance = (h.mean(0) - old_mean) ** 2 / (old_var + 1e-5)
        assert row["mean_shift"] == pytest.approx(np.sqrt(distance.mean()), rel=1e-4)


def test_one_pass_measures_behind_the_old_statistics():
    h1 = _dense(X, 1)
    h2 = _dense(_relu_of_norm(h1, *_old("bn1")), 2)
    found = recalibrate.recalibrate(Net(), VARIABLES, iter(SPLIT), passes=1)
    _check(found, {"bn1": (h1.mean(0), h1.var(0)), "bn2": (h2.mean(0), h2.var(0))})


def _moving(old, batches, momentum=0.8):
    mean, var = old
    for h in batches:
        mean = momentum * mean + (1 - momentum) * h.mean(0)
        var = momentum * var + (1 - momentum) * h.var(0)
    return mean, var


def test_li2018_moves_both_statistics_in_test_mode():
    first = [_dense(x, 1) for x in SPLIT]
    second = [_dense(_relu_of_norm(h, *_old("bn1")), 2) for h in first]
    found = recalibrate.recalibrate(Net(), VARIABLES, SPLIT, "li2018")
    _check(found, {"bn1": _moving(_old("bn1"), first), "bn2": _moving(_old("bn2"), second)})
    twice = recalibrate.recalibrate(Net(), VARIABLES, SPLIT, "li2018", passes=2)
    _check(twice, {"bn1": _moving(_old("bn1"), first * 2)})


@pytest.mark.parametrize("passes", [None, 2])
def test_li2018_moving_normalizes_with_what_the_batches_before_have_moved(passes):
    first, second = _old("bn1"), _old("bn2")
    for x in SPLIT * (passes or 1):
        h1 = _dense(x, 1)
        h2 = _dense(_relu_of_norm(h1, *first), 2)
        first, second = _moving(first, [h1]), _moving(second, [h2])
    batches = iter(SPLIT) if passes is None else SPLIT
    found = recalibrate.recalibrate(Net(), VARIABLES, batches, "li2018_moving", passes=passes)
    _check(found, {"bn1": first, "bn2": second})
    assert (found.num_images, found.num_passes) == (96, passes or 1)
    for row, name, (mean, var) in zip(found.rows, ("bn1", "bn2"), (first, second), strict=True):
        old_mean, old_var = _old(name)
        assert (row["layer"], row["count"], row["error"]) == (name, None, None)
        assert row["ratio"] == pytest.approx(var.mean() / old_var.mean(), rel=1e-5)
        distance = (mean - old_mean) ** 2 / (old_var + 1e-5)
        assert row["mean_shift"] == pytest.approx(np.sqrt(distance.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "flag", "on"),
    [
        case
        for case in BREADTH
        if type(case[0]).__name__ in ("SharedNorm", "Scanned", "Rematted", "Jitted")  # several BNs, or calls
    ],
    ids=lambda v: type(v).__name__,
)
def test_li2018_moving_is_li_adjust_batch_after_batch(model, flag, on):
    batches = list(1 + jax.random.normal(jax.random.key(0), (3, 12, 4, 4, 2)))
    variables = wanted = model.init(jax.random.key(1), batches[0], **{flag: not on})
    for x in batches:
        _, batch_stats = modes.apply(model, wanted, x, mode=modes.LI_ADJUST)
        wanted = {**wanted, "batch_stats": batch_stats}
    found = recalibrate.recalibrate(model, variables, batches, "li2018_moving").batch_stats
    old = recalibrate.recalibrate(model, variables, batches, "li2018").batch_stats
    leaves = list(zip(*map(jax.tree.leaves, (found, wanted["batch_stats"], old)), strict=True))
    assert all(np.allclose(a, b, 1e-5, 1e-6) for a, b, _ in leaves)
    assert not all(np.allclose(a, c, 1e-3, 1e-4) for a, _, c in leaves)


def test_li2018_torch_moves_both_statistics_in_batch_mode():
    first = [_dense(x, 1) for x in SPLIT]
    second = [_dense(_relu_of_norm(h, h.mean(0), h.var(0)), 2) for h in first]
    found = recalibrate.recalibrate(Net(), VARIABLES, SPLIT, "li2018_torch")
    _check(found, {name: _moving(_old(name), hs) for name, hs in (("bn1", first), ("bn2", second))})


def test_hendrycks2016_moves_the_variance_alone_with_batch_statistics():
    first = [_dense(x, 1) for x in SPLIT]
    second = [_dense(_relu_of_norm(h, h.mean(0), h.var(0)), 2) for h in first]
    found = recalibrate.recalibrate(Net(), VARIABLES, SPLIT, "hendrycks2016")
    for name, hs in (("bn1", first), ("bn2", second)):
        _check(found, {name: (_old(name)[0], _moving(_old(name), hs)[1])})


def test_precise_bn_pools_inputs_normalized_by_the_batch():
    first = [_dense(x, 1) for x in SPLIT]
    second = np.concatenate([_dense(_relu_of_norm(h, h.mean(0), h.var(0)), 2) for h in first])
    h1 = np.concatenate(first)
    found = recalibrate.recalibrate(Net(), VARIABLES, SPLIT, "precise_bn")
    _check(found, {"bn1": (h1.mean(0), h1.var(0)), "bn2": (second.mean(0), second.var(0))})


def test_precise_bn_with_noise_keeps_the_shift():
    """Directly behind dropout 0.5 the variance is v + (c^2 + v), by total variance."""
    x = 1 + jax.random.normal(jax.random.key(3), (40_000, 6))
    h = _dense(x, 1)
    wanted = (h.var(0) + (h**2).mean(0)).mean()
    on, off = (
        recalibrate.recalibrate(Net(), VARIABLES, [x], "precise_bn", noise=noise).rows[0]["new_var"]
        for noise in (True, False)
    )
    assert on == pytest.approx(wanted, rel=5 * (8 / 40_000 / 5) ** 0.5)  # five channels of kurtosis < 9
    assert off == pytest.approx(h.var(0).mean(), rel=1e-5)


class Ways(nn.Module):
    """Noise to BN directly, through ReLU and a convolution, into a skip, and from two sides."""

    make: type
    amount: float = 0.3

    @nn.compact
    def __call__(self, x, train=False):
        def norm(x, name):
            scale = nn.initializers.uniform(2.0)
            return nn.BatchNorm(momentum=0.0, scale_init=scale, bias_init=scale, name=name)(
                x, use_running_average=not train
            )

        def drop(x):
            return self.make(self.amount)(x, deterministic=not train)

        x = norm(x, "clean")
        x = norm(nn.Conv(24, (3, 3), padding="VALID")(drop(nn.relu(x))), "weights")
        x = norm(drop(nn.leaky_relu(nn.Dense(24)(x))), "direct")
        x = norm(nn.Dense(24)(x), "again")
        y = nn.Dense(24)(drop(nn.gelu(x)))
        z = norm(nn.Dense(24)(x), "other")
        x = norm(y + z, "skip")
        x = norm(jnp.concatenate([drop(x), z], -1), "concat")
        x = nn.Dense(6)(nn.tanh(nn.Dense(6)(drop(x))))
        return norm(x, "far")


@pytest.mark.parametrize(
    "make",
    [nn.Dropout, pytest.param(noise.GaussianDropout, marks=pytest.mark.slow)],
    ids=lambda c: c.__qualname__,
)
def test_closed_form_is_what_data_would_give(make):
    """Statistics of training with noise on, corrected, against those taken again with noise off.

    Inputs of BNs are Gaussian, or nearly so as sums of 24 and more. Variances of 45,000 pixels have a
    relative error below 5 sqrt(10 / 45,000) = 0.07 in a channel, and much below in the mean over 24 of them.
    """
    x = np.random.default_rng(0).normal(size=(5_000, 5, 5, 4)).astype(np.float32)
    model = Ways(make)
    variables = model.init(jax.random.key(1), x[:2])
    rngs = {"dropout": jax.random.key(2)}
    _, stats = jax.jit(lambda v: modes.apply(model, v, x, mode=modes.TRAIN, rngs=rngs))(variables)
    variables = {**variables, "batch_stats": stats}
    found = recalibrate.recalibrate(model, variables, [x[:2]], "closed_form")
    wanted = recalibrate.recalibrate(model, variables, [x], tolerance=0, passes=7).rows
    hows = {row["layer"]: row["how"].partition(";")[0] for row in found.rows}
    assert hows["clean"] == "no noise reaches it" and hows["direct"] == hows["concat"] == "directly"
    assert (hows["weights"], hows["skip"]) == ("through weights", "through a skip")
    assert hows["again"] == hows["other"] and "layers before it are corrected" in hows["other"]
    assert hows["far"].startswith("not corrected: the noise comes through more than")
    for row, right in zip(found.rows, wanted, strict=True):
        if row["layer"] not in ("again", "other", "far"):
            assert row["new_var"] == pytest.approx(right["new_var"], rel=0.03), row["layer"]
    by_name = {row["layer"]: row["ratio"] for row in found.rows}
    assert by_name["direct"] < 0.9 > by_name["weights"] and by_name["skip"] < 0.98


@pytest.mark.parametrize(
    ("make", "activation", "how"),
    [
        (nn.Dropout, nn.relu, "directly"),
        (noise.Uout, nn.leaky_relu, "directly"),
        (noise.GaussianDropout, nn.relu, "not corrected: what reaches it is not its input times the noise"),
        (noise.GaussianDropout, lambda x: -2 * x, "directly"),
        (nn.Dropout, nn.gelu, "not corrected: what reaches it is not its input times the noise"),
    ],
)
def test_noise_commutes_with_what_is_homogeneous(make, activation, how):
    """Kim et al. 2023, Proposition 1: ReLU(m x) = m ReLU(x) for m >= 0, which a Gaussian m is not."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = activation(make(0.5)(x, deterministic=not train))
            return nn.BatchNorm()(x, use_running_average=not train)

    variables = jax.tree.map(lambda leaf: leaf + 0.5, Model().init(jax.random.key(0), X))
    (row,) = recalibrate.recalibrate(Model(), variables, [X], "closed_form").rows
    assert row["how"] == how
    mean, var = 0.5, 1.5
    s2 = 1 / 12 if make is noise.Uout else 1.0
    wanted = (var - s2 * mean**2) / (1 + s2) if how == "directly" else var
    assert row["new_var"] == pytest.approx(wanted)


def test_it_stops_when_the_standard_error_is_small_and_the_error_is_true():
    """Batches of correlated values, so that only their spread tells the error; against 200 repetitions."""
    rng = np.random.default_rng(0)
    model = nn.BatchNorm(use_running_average=True)
    variables = model.init(jax.random.key(0), X)
    variables = {**variables, "batch_stats": jax.tree.map(lambda v: v + 1.0, variables["batch_stats"])}
    shared = rng.normal(size=(200, 40, 1, 6))  # each batch has a share of its own
    data = (shared + rng.normal(size=(200, 40, 10, 6))).astype(np.float32)
    pooled = data.reshape(200, -1, 6).astype(np.float64).var(1).mean(-1)
    estimates = [recalibrate.recalibrate(model, variables, list(x), tolerance=0).rows[0] for x in data[:10]]
    for estimate, wanted in zip(estimates, pooled, strict=False):
        assert estimate["new_var"] == pytest.approx(wanted, rel=1e-5)
    # The spread of 200 standard deviations is 1 / sqrt(400); of the mean of ten errors less than 0.1.
    error = np.mean([estimate["error"] for estimate in estimates])
    assert error == pytest.approx(pooled.std() / pooled.mean(), rel=0.3)

    endless = [data[0][i % 40] for i in range(64)]
    found = recalibrate.recalibrate(model, variables, endless, tolerance=0.08)
    assert found.num_images in range(80, 640, 80) and found.rows[0]["error"] < 0.08
    assert recalibrate.recalibrate(model, variables, endless, tolerance=0).num_images == 640


@pytest.mark.parametrize(
    ("model", "flag", "on"),
    [case for case in BREADTH if type(case[0]).__name__ in ("Scanned", "HalfPrecision", "Jitted")],
    ids=lambda v: type(v).__name__,
)
def test_breadth_has_no_shift_afterwards(model, flag, on):
    x = 1 + jax.random.normal(jax.random.key(0), (12, 4, 4, 2))
    variables = model.init(jax.random.key(1), x, **{flag: not on})
    before = jax.tree.map(np.array, variables)
    found = recalibrate.recalibrate(model, variables, [x])
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    after = shift.measure(model, {**variables, "batch_stats": found.batch_stats}, [x])
    assert [row["layer"] for row in found.rows] == [row["layer"] for row in after.rows]
    for row in after.rows:
        assert row["ratio"] == pytest.approx(1, rel=2e-2 if "Half" in type(model).__name__ else 1e-4)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_arrays_spread_over_devices_give_the_same(devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("images",))
    spread = jax.NamedSharding(mesh, jax.P("images"))
    batches = [jax.device_put(x, spread) for x in SPLIT]
    one, many = (shift.measure(Net(), VARIABLES, given).rows for given in (SPLIT, batches))
    for a, b in zip(one, many, strict=True):
        assert b["real_var"] == pytest.approx(a["real_var"], rel=1e-5)
    one, many = (recalibrate.recalibrate(Net(), VARIABLES, given).batch_stats for given in (SPLIT, batches))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)


def test_refusals():
    def refused(match, *arguments, **options):
        with pytest.raises(DropbnError, match=match):
            recalibrate.recalibrate(*arguments, **options)

    refused("Did you mean 'precise_bn'", Net(), VARIABLES, [X], "precise")
    refused("noise=True belongs to", Net(), VARIABLES, [X], noise=True)
    refused("passes=0: give a whole number", Net(), VARIABLES, [X], passes=0)
    refused("iterator whose batches are used up", Net(), VARIABLES, iter(()))
    refused("no batch normalization", nn.Dense(2), nn.Dense(2).init(jax.random.key(0), X), [X])
    refused("one image has no batch statistics", Net(), VARIABLES, [X[:1], X], "precise_bn")
    refused("'bn1' is not finite in batch 1", Net(), VARIABLES, [X, X.at[0].set(jnp.inf)])
    refused("'bn1' is not finite", Net(), VARIABLES, [X, X.at[0].set(jnp.inf)], "li2018_moving")
    refused("'bn1' does not vary", Net(), VARIABLES, [X[:1]])
    refused("put a single batch in a list", Net(), VARIABLES, X)
    refused("do not fit the model", Net(), VARIABLES, [X[:, :3]])
    other = {**VARIABLES, "batch_stats": jax.tree.map(lambda v: v[:3], VARIABLES["batch_stats"])}
    refused(r"mean of 'bn1' has shape \(3,\)", Net(), other, [X])
    refused("do not fit the model", Net(), {"params": {}, "batch_stats": {}}, [X])
    refused("hold no batch_stats", Net(), {"params": VARIABLES["params"]}, [X])

    refused("No noise was found that training alone has", Quiet(), _quiet(), [X], "closed_form")
    fresh = Net().init(jax.random.key(1), X)
    refused("'bn1' are still at mean 0, variance 1", Net(), fresh, [X], "closed_form")

    class Shrinking:
        length = 3

        def __iter__(self):
            self.length -= 1
            return iter(SPLIT[: self.length + 1])

    refused("ended early: 1 where an earlier pass had 2", Net(), VARIABLES, Shrinking())


class Quiet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm()(nn.Dropout(0.0)(x, deterministic=not train), use_running_average=not train)


def _quiet():
    return jax.tree.map(lambda leaf: leaf + 3.0, Quiet().init(jax.random.key(0), X))


def test_a_registered_norm():
    """A BN whose flag is no bool, registered in one line, is switched, measured and recalibrated."""
    from dropbn.diagnose import registry

    class RunningNorm(nn.Module):
        @nn.compact
        def __call__(self, x, learning):
            mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
            var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1])
            used = (x.mean(0), x.var(0)) if learning else (mean.value, var.value)
            if learning and not self.is_initializing():
                mean.value, var.value = used
            return (x - used[0]) / jnp.sqrt(used[1] + 1e-5)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return RunningNorm(name="own")(nn.Dropout(0.5)(x, deterministic=not train), int(train))

    variables = Model().init(jax.random.key(0), X)
    with pytest.raises(DropbnError, match="no batch normalization"):
        recalibrate.recalibrate(Model(), variables, [X])
    registry.NORMS[RunningNorm] = registry.Switch("learning", test=False)
    try:
        found = recalibrate.recalibrate(Model(), variables, [X])
        output, _ = modes.apply(Model(), variables, X, mode=modes.Mode(False, "batch", False))
    finally:
        del registry.NORMS[RunningNorm]
    np.testing.assert_allclose(found.batch_stats["own"]["var"], np.asarray(X, np.float64).var(0), rtol=1e-5)
    np.testing.assert_allclose(output, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), rtol=1e-4, atol=1e-5)


def test_results_write_themselves(tmp_path):
    found = recalibrate.recalibrate(ConstructorFlags(), *_constructor_flags())
    assert found.to_csv().splitlines()[0] == "layer,count,old_var,new_var,ratio,mean_shift,error"
    assert '"error": null' in found.to_json()
    found.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def _constructor_flags():
    x = jax.random.normal(jax.random.key(0), (12, 4, 4, 2))
    return ConstructorFlags().init(jax.random.key(1), x), [x]
