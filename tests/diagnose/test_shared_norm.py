"""One BN that a forward pass calls several times, against Flax's own training and float64 NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_models import Body, Jitted, SharedNorm

from dropbn.diagnose import gap, lint, modes, norms, observation, recalibrate, shift
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.linen import Model
from dropbn.diagnose.predictor import Predictor
from dropbn.errors import DropbnError

OFF_BATCH = modes.Mode(noise=False, batch_norm="batch", update=False)


class Domains(nn.Module):
    """One BN for domains that lie along axis 1."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(momentum=self.momentum, name="bn")
        return sum(norm(x[:, i], use_running_average=not train) for i in range(x.shape[1]))


class Step(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, carry, x):
        y = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, name="bn")(x)
        return carry + y, None


class Recurrent(nn.Module):
    """The same as `Domains` in a loop: nn.scan runs over axis 1."""

    lifted: str = "variable_carry"

    @nn.compact
    def __call__(self, x, train=False):
        options = {"variable_broadcast": "params"}
        options[self.lifted] = ("params", "batch_stats") if "broadcast" in self.lifted else "batch_stats"
        loop = nn.scan(Step, in_axes=1, split_rngs={"params": False}, **options)
        return loop(train, name="cell")(jnp.zeros_like(x[:, 0]), x)[0]


def _batches(means, number=3, deviations=None):
    """(256, domains, 4), one mean and one deviation a domain."""
    rng, deviations = np.random.default_rng(0), deviations or [1.0] * len(means)
    shape = (256, len(means), 4)
    scale, shift = (np.array(values)[:, None] for values in (deviations, means))
    return [(rng.normal(size=shape) * scale + shift).astype(np.float32) for _ in range(number)]


def _variables(model, x):
    """Statistics that are neither 0 and 1 nor those of x."""
    fresh = model.init(jax.random.key(0), x)
    return {**fresh, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.3, fresh["batch_stats"])}


def _moved(start, batches, momentum):
    """Flax's moving average in float64: (mean, var), moved once a call."""
    mean, var = start
    for x in batches:
        for call in np.moveaxis(np.asarray(x, np.float64), 1, 0):
            mean = momentum * mean + (1 - momentum) * call.mean(0)
            var = momentum * var + (1 - momentum) * call.var(0)
    return mean, var


def test_two_domains_settle_to_the_mean_of_their_variances():
    """As Flax trains them; the inputs of both together have a variance of 5."""
    batches = _batches([0, 4])
    model = Domains()
    variables = fresh = model.init(jax.random.key(0), batches[0])
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1])
    history = []
    for x in batches * 100:
        variables = {**variables, **step(variables, x)}
        history.append(np.asarray(variables["batch_stats"]["bn"]["var"], np.float64))
    settled = np.mean(history[-3:], 0)  # A whole round of the batches.
    by_hand = np.mean([x.astype(np.float64).var(0) for x in batches], 0)  # (domains, channels)
    weights = np.array([0.9, 1.0]) * (1 - 0.9) / (1 - 0.9**2)
    np.testing.assert_allclose(settled, weights @ by_hand, rtol=1e-5)

    predicted, measured = shift.predict(model, fresh, batches), shift.measure(model, variables, batches)
    assert [row["layer"] for row in predicted.rows] == ["bn[call 1]", "bn[call 2]"]
    pooled = [np.concatenate([x[:, i] for x in batches]).astype(np.float64) for i in (0, 1)]
    for row, trained, x in zip(predicted.rows, measured.rows, pooled, strict=True):
        assert row["moving_var"] == pytest.approx(settled.mean(), rel=1e-5)
        assert (row["count"], trained["count"]) == (768, 768)
        assert row["real_var"] == trained["real_var"] == pytest.approx(x.var(0).mean(), rel=1e-5)
        assert row["mean_shift"] == pytest.approx(2, abs=0.15)  # Half of the domains' distance.


@pytest.mark.parametrize("momentum", [0.0, 0.4, 0.99])
def test_the_weights_are_those_of_flax_whatever_the_momentum(momentum):
    batches = _batches([0, 4, -1], deviations=[1, 3, 0.5])
    variables = _variables(Domains(momentum), batches[0])
    observer = observation.Observer(Model.of(Domains(momentum)), variables, Batches(batches), modes.TRAIN)
    ((mean, var),) = observation.converged(observer, variables).values()
    # The average of where each batch alone would take the statistics.
    wanted = [_moved((np.zeros(4), np.ones(4)), [x] * 1000, momentum) for x in batches]
    np.testing.assert_allclose(mean, np.mean([m for m, _ in wanted], 0), rtol=1e-5)
    np.testing.assert_allclose(var, np.mean([v for _, v in wanted], 0), rtol=1e-5)


def test_a_loop_over_time_is_as_many_calls():
    batches = _batches([0, 4, -1], deviations=[1, 3, 0.5])
    unrolled, loop = Domains(), Recurrent()
    variables = _variables(unrolled, batches[0])
    in_loop = {name: {"cell": collection} for name, collection in variables.items()}
    for measure in (shift.measure, shift.predict):
        wanted = measure(unrolled, variables, batches).rows
        found = measure(loop, in_loop, batches).rows
        for row, right in zip(found, wanted, strict=True):
            assert row["layer"] == "cell/" + right["layer"]
            np.testing.assert_allclose(list(row.values())[1:], list(right.values())[1:], rtol=1e-5)


def test_moving_averages_follow_the_calls():
    batches = _batches([0, 4, -1], number=2, deviations=[1, 3, 0.5])
    model = Domains(0.8)
    variables = _variables(model, batches[0])
    old = (np.full(4, 0.3), np.full(4, 1.3))
    found = recalibrate.recalibrate(model, variables, batches, "li2018")
    for key, wanted in zip(("mean", "var"), _moved(old, batches, 0.8), strict=True):
        np.testing.assert_allclose(found.batch_stats["bn"][key], wanted, rtol=1e-5)
    # Measured call by call, from the first batch on: what a moving average of k calls leaves of each.
    rows = shift.measure(model, variables, batches, estimator="li2018").rows
    first, second = (x.astype(np.float64).var(0).mean(-1) for x in batches)
    np.testing.assert_allclose(
        [row["real_var"] for row in rows], 0.8**3 * first + (1 - 0.8**3) * second, rtol=1e-5
    )


@pytest.mark.parametrize("recipe", ["dropout_off", "precise_bn"])
def test_exact_moments_are_those_of_all_calls_together(recipe):
    batches = _batches([0, 4])
    found = recalibrate.recalibrate(Domains(), _variables(Domains(), batches[0]), batches, recipe)
    x = np.concatenate(batches).astype(np.float64).reshape(-1, 4)
    np.testing.assert_allclose(found.batch_stats["bn"]["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.batch_stats["bn"]["var"], x.var(0), rtol=1e-5)
    assert (found.rows[0]["layer"], found.rows[0]["count"]) == ("bn[2 calls]", len(x))


def test_recalibration_settles_where_a_call_follows_another():
    """The second call's input depends on the statistics that both have: a fixed point, by hand."""
    x = (1 + np.random.default_rng(0).normal(size=(64, 6))).astype(np.float32)
    variables = SharedNorm().init(jax.random.key(0), x)
    found = recalibrate.recalibrate(SharedNorm(), variables, [x[:30], x[30:]])
    mean, var = (np.asarray(found.batch_stats["shared"][key], np.float64) for key in ("mean", "var"))
    dense = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"]["Dense_0"])
    second = np.maximum((x - mean) / np.sqrt(var + 1e-5) @ dense["kernel"] + dense["bias"], 0)
    inputs = np.concatenate([x, second])
    np.testing.assert_allclose(mean, inputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(var, inputs.var(0), rtol=1e-4)


class Twice(nn.Module):
    """A body that calls its BN twice, for nn.scan and nn.vmap."""

    train: bool

    @nn.compact
    def __call__(self, x, _=None):
        norm = nn.BatchNorm(use_running_average=not self.train, name="bn")
        return norm(nn.relu(norm(x) + 1)), None


class Lifted(nn.Module):
    """Three bodies under nn.scan or nn.vmap."""

    transformation: str
    body: type = Twice

    @nn.compact
    def __call__(self, x, train=False):
        x, axes = x.reshape(len(x), -1), {"params": 0, "batch_stats": 0}
        rngs = {"params": True, "dropout": True}
        if self.transformation == "vmap":
            members = nn.vmap(self.body, axes, split_rngs=rngs, in_axes=None, axis_size=3)
            return members(train, name="layers")(x)[0].sum(0)
        return nn.scan(nn.remat(self.body), axes, split_rngs=rngs, length=3)(train, name="layers")(x, None)[0]


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.BatchNorm(use_running_average=not self.train, name="bn")(nn.Dense(3)(x)))


Compiled = nn.jit(Block)


class Alike(nn.Module):
    """Two blocks that nn.jit traces once, the second of them called twice."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Compiled(train, name="first")(x[:, 0])
        second = Compiled(train, name="second")
        return second(second(x))


X = 1 + np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)
# (model, the flag, calls of its BNs by name)
SHARED = [
    (Domains(), "train", {"bn": 2}),
    (SharedNorm(), "deterministic", {"shared": 2}),
    (Recurrent(), "train", {"cell/bn": 2}),
    (Lifted("scan"), "train", {"layers/bn": 2}),
    (Lifted("vmap"), "train", {"layers/bn": 2}),
    (Lifted("scan", Body), "train", {"layers/first": 1, "layers/second": 1}),
    (Lifted("vmap", Body), "train", {"layers/first": 1, "layers/second": 1}),
    (Alike(), "train", {"first/bn": 1, "second/bn": 2}),
    (Jitted(), "train", {"JitBody_0/first": 1, "JitBody_0/second": 1}),
]


def _start(model, flag):
    if isinstance(model, Recurrent):  # Linen cannot initialise it.
        start = _variables(Domains(), X)
        return {name: {"cell": collection} for name, collection in start.items()}
    fresh = model.init(jax.random.key(0), X, **{flag: flag == "deterministic"})
    return {**fresh, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.3, fresh["batch_stats"])}


@pytest.mark.parametrize(("model", "flag", "calls"), SHARED, ids=lambda value: type(value).__name__)
def test_calls_are_counted_and_normalized_each_by_its_own(model, flag, calls):
    """With the statistics of one batch for each call, test mode is train mode without noise on that batch."""
    variables = _start(model, flag)
    observer = observation.Observer(Model.of(model), variables, Batches([X]), OFF_BATCH)
    assert {"/".join(path): layer.calls for path, layer in observer.layers.items()} == calls
    by_call = observation.converged_by_call(observer, variables)
    own = observation.with_statistics_by_call(observer, variables, by_call)
    wanted, _ = modes.apply(model, variables, X, mode=OFF_BATCH)
    found, _ = modes.apply(model, own, X, mode=modes.TEST)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    averaged = norms.with_statistics(observer.known, variables, observation.averaged(observer, by_call))
    once, _ = modes.apply(model, averaged, X, mode=modes.TEST)
    assert np.allclose(once, wanted, 1e-3, 1e-3) == (max(calls.values()) == 1)

    shared = {
        row["norm"] for row in lint.check(model, X, variables=variables).rows if row["code"] == "DBN303"
    }
    assert shared == {name for name, number in calls.items() if number > 1}


def test_predicted_outputs_by_call_are_those_of_modes():
    """`Predictor` takes the variables as they are; its batches are those of `apply`."""
    batches = _batches([0, 4])
    variables = _variables(Domains(), batches[0])
    observer = observation.Observer(Model.of(Domains()), variables, Batches(batches), OFF_BATCH)
    by_call = observation.converged_by_call(observer, variables)
    own = observation.with_statistics_by_call(observer, variables, by_call)
    ((calls),) = by_call.values()
    for (_, found), x in zip(
        Predictor(Model.of(Domains()), modes.TEST)(own, Batches(batches)), batches, strict=True
    ):
        wanted = sum((x[:, i] - mean) / np.sqrt(var + 1e-5) for i, (mean, var) in enumerate(calls))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


class Undecided(nn.Module):
    """A BN in one branch of nn.cond, in both, or in nn.while_loop."""

    kind: str

    def setup(self):
        self.bn = nn.BatchNorm()

    def __call__(self, x, train=False):
        def norm(module, x):
            return module.bn(x, use_running_average=not train)

        if self.is_initializing():
            return norm(self, x)
        if self.kind == "while":
            return nn.while_loop(
                lambda module, carry: carry[0] < 2,
                lambda module, carry: (carry[0] + 1, norm(module, carry[1])),
                self,
                (0, x),
                carry_variables="batch_stats",
            )[1]
        return nn.cond(x.sum() > 0, norm, norm if self.kind == "both" else lambda _, x: x, self, x)


def test_what_the_data_decide_is_not_measured():
    x = X.reshape(12, 6)
    for kind in ("while", "one"):
        with pytest.raises(DropbnError, match=r"data decide how often 'bn' is called \(nn.cond, nn.while"):
            shift.measure(Undecided(kind), _variables(Undecided(kind), x), [x])
    (row,) = shift.measure(Undecided("both"), _variables(Undecided("both"), x), [x]).rows
    assert row["real_var"] == pytest.approx(x.astype(np.float64).var(0).mean(), rel=1e-5)
    variables = _start(Recurrent(), "train")
    for tool in (shift.measure, shift.predict, recalibrate.recalibrate):
        with pytest.raises(DropbnError, match="broadcasts batch_stats that its steps would move or"):
            tool(Recurrent("variable_broadcast"), variables, [X])


def test_momentum_is_too_long_by_the_calls():
    """0.99^(2 * 229) is the last above a hundredth."""
    model = Domains(0.99)
    codes = [[row["code"] for row in lint.check(model, X, num_steps=number).rows] for number in (229, 230)]
    assert codes == [["DBN301", "DBN303"], ["DBN303"]]


def test_closed_form_leaves_a_shared_norm_alone():
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    variables = SharedNorm().init(jax.random.key(0), x)
    variables = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])}
    (row,) = recalibrate.recalibrate(SharedNorm(), variables, [x], "closed_form").rows
    assert row["ratio"] == 1 and row["how"] == "not corrected: its statistics are not those of one call"


class Difference(nn.Module):
    """Whether the first of two inputs is the larger, each against its own domain."""

    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_scale=False, use_bias=False)
        first, second = (norm(x[:, [i]], use_running_average=not train) for i in (0, 1))
        return jnp.concatenate([second - first, first - second], -1)


def test_the_gap_gives_shared_statistics_a_share_of_their_own():
    """Domains at 0 and 4: by their own statistics all is right, by one mean the first is always the less."""
    normal = np.random.default_rng(0).normal(size=(3, 400, 2)).astype(np.float32)
    normal = (normal - normal.mean(1, keepdims=True)) / normal.std(1, keepdims=True)
    domains = normal + np.float32([0, 4])
    *train, test = zip(domains, normal[..., 0] > normal[..., 1], strict=True)
    variables = Difference().init(jax.random.key(0), train[0][0], train=False)
    found = gap.explain(Difference(), variables, train, [test])
    shares = {row["cause"]: row["accuracy"] for row in found.shares.rows}
    labels = np.concatenate([label for _, label in train])
    x = np.concatenate([x for x, _ in train])
    lost = 1 - np.mean((x[:, 0] > x[:, 1]) == labels)
    assert shares["small-batch noise"] == pytest.approx(0, abs=1e-9)
    assert shares["shared statistics"] == pytest.approx(lost, abs=1e-9) and lost > 0.4
    assert "largest share of the gap is shared statistics" in found.advice
    assert "A BN for each domain" in found.advice
    assert {row["batch_norm"] for row in found.rows} == {"running", "batch", "converged by call", "converged"}
