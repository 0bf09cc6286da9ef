"""The linter against labelled networks, measured ratios, and what its own advice promises."""

import functools
import inspect
import io
import json
import os
import pathlib
import subprocess
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax import lax
from linen_models import BREADTH
from lint_models import CASES, SHARED

from dropbn import models
from dropbn.diagnose import lint, modes, shift, surgery
from dropbn.diagnose.noise_flow import arithmetic
from dropbn.diagnose.target import load_model
from dropbn.errors import DropbnError
from dropbn.nn import noise

ROOT = pathlib.Path(__file__).parents[2]


def _on_the_way(report):
    return {
        (row["severity"], row["way"], row["noise"], row["norm"])
        for row in report.rows
        if row["code"] in ("DBN101", "DBN102", "DBN103")
    }


# What is labelled an error and found to be noise into a skip, and why (docs/lint.md).
MISSES = {
    "resnet_v1_dropout_shortcut": ("b1/drop", "b2/bn1"),  # Noise on the shortcut; the branch is free of it.
    "two_towers": ("drop", "bn"),  # Two towers added; the other one is free of it.
}


@functools.cache
def _report(name):
    """What lint finds in a labelled network."""
    [case] = [case for case in CASES if case.name == name]
    return lint.check(case.model, jax.ShapeDtypeStruct(case.shape, jnp.float32))


@pytest.mark.xdist_group("labelled")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_labelled_networks(case):
    missed = MISSES.get(case.name)
    wanted = {("info", "into a skip", *missed)} if missed else case.findings
    assert _on_the_way(_report(case.name)) == wanted
    assert (wanted == case.findings) == (missed is None)
    shared = {row["norm"] for row in _report(case.name).rows if row["code"] == "DBN303"}
    assert shared == SHARED.get(case.name, set())


@pytest.mark.parametrize("name", arithmetic._NUMPY)
def test_numpy_computes_what_jax_does(name):
    """On floats, whole numbers and booleans, where JAX takes them; with infinities and NaN."""
    others = {"add_any": "add", "and": "bitwise_and", "or": "bitwise_or", "not": "bitwise_not"}
    function = getattr(lax, others.get(name, name))
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    rng, taken = np.random.default_rng(0), 0
    floats = np.array([*rng.normal(size=50), 0, -0.0, 1, -1, np.inf, -np.inf, np.nan], np.float32)
    for x in (floats, rng.integers(1, 9, 57).astype(np.int32), floats > 0):
        arguments = [np.roll(x, 7 * i) for i in range(len(required))]
        if name == "select_n":
            arguments = [x > 1, x, np.roll(x, 7)]
        try:
            wanted = function(*arguments)
        except TypeError:
            continue
        [eqn] = jax.make_jaxpr(function)(*arguments).eqns
        found = arithmetic.evaluate(eqn.primitive, eqn.params, arguments, wanted.dtype)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-7)
        taken += 1
    assert taken


@pytest.mark.xdist_group("labelled")
def test_precision_and_recall_are_what_the_docs_say():
    """Over pairs of noise and BN, whichever way an error reaches the BN."""

    def pairs(findings, severity):
        return {(case.name, *f[2:]) for case in CASES for f in findings(case) if f[0] == severity}

    numbers, sentences = [], []
    for severity, what in (("error", "the errors"), ("info", "noise into a skip")):
        found = pairs(lambda case: _on_the_way(_report(case.name)), severity)
        labelled = pairs(lambda case: case.findings, severity)
        numbers.append(len(labelled))
        precision, recall = (len(found & labelled) / len(of) for of in (found, labelled))
        sentences.append(f"- of {what} precision {precision:.3f}, recall {recall:.3f}")
    docs = " ".join((ROOT / "docs" / "lint.md").read_text().split())
    assert f"holds {len(CASES)} networks" in docs
    assert f"{sum(not case.findings for case in CASES)} of them have nothing to find" in docs
    assert "there are {} errors and {} of noise into a skip".format(*numbers) in docs
    assert all(sentence in docs for sentence in sentences), sentences


def test_there_are_enough_right_and_wrong_ones():
    errors = [case for case in CASES if any(finding[0] == "error" for finding in case.findings)]
    assert len(CASES) >= 30 and len(errors) >= 12 and len(CASES) - len(errors) >= 12
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("model", "flag", "on"), BREADTH, ids=lambda v: type(v).__name__)
def test_breadth_has_noise_directly_before_a_norm(model, flag, on):
    report = lint.check(model, jnp.ones((4, 4, 4, 2)))
    assert {row["code"] for row in report.errors()} == {"DBN101"}
    rate = next(row["amount"] for row in report.rows)
    assert report.errors()[0]["ratio"] == pytest.approx(1 - rate)


SEVERITY = {f"P{i}": "error" for i in range(5)} | {f"P{i}": "info" for i in (5, 6, 7)} | {"last": None}


@pytest.mark.parametrize("place", SEVERITY)
def test_the_papers_positions_in_our_own_networks(place, tiny_config):
    tiny_config.model.block, tiny_config.model.place, tiny_config.model.num_classes = "", place, 10
    report = lint.check(models.create(tiny_config.model), jnp.ones((2, 8, 8, 1)))
    ways = {row["severity"] for row in report.rows if row["way"]}
    assert min(ways, default=None, key=("error", "info").index) == SEVERITY[place]
    codes = {row["code"] for row in report.rows}
    assert ("DBN203" in codes) == (place == "P0") and ("DBN202" in codes) == (place == "P7")
    assert ("DBN204" in codes) == (place == "last")


class Chain(nn.Module):
    """What stands between the input and the output, in order, from a list of layers."""

    layers: tuple

    @nn.compact
    def __call__(self, x, train=False):
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm):
                x = layer(x, use_running_average=not train)
            elif isinstance(layer, (nn.Dropout, noise.Noise)):
                x = layer(x, deterministic=not train)
            else:
                x = layer(x)
        return x


def _codes(*layers, shape=(4, 6, 6, 3), **options):
    report = lint.check(Chain(layers), jnp.ones(shape), **options)
    return {row["code"] for row in report.rows if not row["way"]}


def test_rules_of_place():
    conv, norm = nn.Conv(4, (3, 3), use_bias=False), nn.BatchNorm()
    drop = nn.Dropout(0.1)
    pool = lambda x: nn.max_pool(x, (2, 2))  # noqa: E731
    mean = lambda x: x.mean((1, 2))  # noqa: E731
    assert _codes(conv, norm, nn.relu, drop, pool) == {"DBN205"}
    assert _codes(conv, norm, drop, nn.relu, pool) == {"DBN205"}
    assert _codes(conv, norm, nn.relu, pool, drop) == set()
    assert _codes(conv, norm, nn.relu, mean, drop, nn.Dense(3)) == {"DBN204"}
    assert _codes(conv, norm, nn.relu, drop, mean, nn.Dense(3)) == set()
    assert _codes(nn.Conv(4, (3, 3)), norm, nn.relu, nn.Dense(3)) == {"DBN206"}
    assert _codes(nn.Dense(4), nn.relu, norm) == set()


def test_two_noises_in_one_branch():
    class Block(nn.Module):
        rates: tuple

        @nn.compact
        def __call__(self, x, train=False):
            y = nn.relu(nn.BatchNorm()(x, use_running_average=not train))
            y = nn.Dropout(self.rates[0], name="first")(y, deterministic=not train)
            y = nn.Dense(5)(y)
            return x + nn.Dropout(self.rates[1], name="second")(y, deterministic=not train)

    both = lint.check(Block((0.1, 0.2)), jnp.ones((4, 5)))
    row = next(row for row in both.rows if row["code"] == "DBN201")
    assert row["noise"] == "first" and "first, second" in row["advice"]
    for rates in ((0.1, 0.0), (0.0, 0.2)):
        assert "DBN201" not in {row["code"] for row in lint.check(Block(rates), jnp.ones((4, 5))).rows}


def test_no_advice_contradicts_drop_path():
    """Its place is the end of a branch, and its purpose to drop the branch with whatever it holds."""
    path = nn.Dropout(0.1, broadcast_dims=(1, 2, 3))
    conv, norm = nn.Conv(4, (3, 3), use_bias=False), nn.BatchNorm()
    pool = lambda x: nn.max_pool(x, (2, 2))  # noqa: E731
    mean = lambda x: x.mean((1, 2), keepdims=True)  # noqa: E731
    assert _codes(conv, norm, path, pool) == _codes(conv, norm, mean, path, nn.Dense(2)) == set()
    for layers in ((path, norm), (path, conv, norm)):  # Directly and through weights.
        [row] = lint.check(Chain(layers), jnp.ones((4, 6, 6, 3))).errors()
        assert "Put it at the end of its branch" in row["advice"] and "Uout" not in row["advice"]
        assert row["ratio"] == pytest.approx(0.9) and "a rate up to 0.05." in row["advice"]

    class Block(nn.Module):
        trunk: bool
        inner: float = 0.0

        @nn.compact
        def __call__(self, x, train=False):
            drop = functools.partial(nn.Dropout, deterministic=not train)
            if self.trunk:
                x = drop(0.1, broadcast_dims=(1, 2, 3), name="path")(x)
            y = nn.BatchNorm()(x, use_running_average=not train)
            y = nn.Conv(3, (3, 3))(drop(self.inner)(y))
            x = x + (y if self.trunk else drop(0.1, broadcast_dims=(1, 2, 3), name="path")(y))
            return nn.BatchNorm()(x, use_running_average=not train)

    rows = {row["code"]: row for row in lint.check(Block(True), jnp.ones((4, 6, 6, 3))).rows}
    assert rows.keys() == {"DBN101", "DBN203"} and "end of its branch" in rows["DBN203"]["advice"]
    beside = lint.check(Block(False, inner=0.2), jnp.ones((4, 6, 6, 3)))
    assert {row["code"] for row in beside.rows} == {"DBN103"}  # No two noises in one branch.


def test_one_habit_is_one_row():
    """Three biases are one finding with all their names; each noise keeps a row of its own."""
    conv, norm = nn.Conv(4, (3, 3)), nn.BatchNorm()
    model = Chain((conv, norm, nn.Conv(4, (3, 3)), nn.BatchNorm(), nn.Conv(4, (3, 3)), nn.BatchNorm()))
    report = lint.check(model, jnp.ones((4, 6, 6, 3)))
    [row] = report.rows
    assert (row["code"], row["norm"], row["count"]) == ("DBN206", "layers_1", 3)
    assert {*row["layers"]} == {f"layers_{i}" for i in range(6)}
    assert json.loads(report.to_json())[0]["layers"] == row["layers"]
    assert report.summary()[1:] == ["  DBN206 (info) bias before batch normalization: layers_1 and 2 more"]
    with io.StringIO() as text:
        rich.console.Console(file=text, width=200).print(report)
        assert text.getvalue().count("DBN206") == 2 and "layers_1 and 2 more" in text.getvalue()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((4, 6, 6, 3)))
    variables = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: jnp.full(leaf.shape, float(keys[-1].key == "var")), shapes
    )
    [error] = lint.check(model, jnp.ones((4, 6, 6, 3)), variables=variables).errors()
    assert (error["code"], error["count"]) == ("DBN302", 3)
    both = Chain((nn.Dropout(0.1), norm, nn.Dropout(0.1), nn.BatchNorm()))
    assert len(lint.check(both, jnp.ones((4, 3))).errors()) == 2


def test_a_noise_that_reaches_many_is_one_line_of_the_table():
    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            y = nn.Dropout(0.5, name="drop")(x, deterministic=not train)
            return [nn.BatchNorm(name=f"bn{i}")(y, use_running_average=not train) for i in range(4)]

    report = lint.check(Dense(), jnp.ones((4, 3)))
    assert len(report.rows) == 4
    with io.StringIO() as text:
        rich.console.Console(file=text, width=200).print(report)
        [line] = [line for line in text.getvalue().splitlines() if "directly" in line]
    assert "drop -> bn0 and 3 more" in line and "test_lint.py:" in line and "0.500" in line


def test_rules_of_statistics():
    model, x = Chain((nn.Dense(3, use_bias=False), nn.BatchNorm(momentum=0.99))), jnp.ones((4, 3))
    fresh = model.init(jax.random.key(0), x)
    assert [row["code"] for row in lint.check(model, x, variables=fresh).errors()] == ["DBN302"]
    trained = {**fresh, "batch_stats": jax.tree.map(lambda leaf: leaf + 1, fresh["batch_stats"])}
    assert lint.check(model, x, variables=trained).rows == []
    # 0.99^458 is the last above a hundredth.
    assert [row["code"] for row in lint.check(model, x, num_steps=458).rows] == ["DBN301"]
    assert lint.check(model, x, num_steps=459).rows == []
    advice = lint.check(model, x, num_steps=100).rows[0]["advice"]
    assert "37% of the initial statistics" in advice
    momentum = float(advice.partition("momentum ")[2].split()[0])
    assert momentum**100 == pytest.approx(0.01, rel=0.1)


class Three(nn.Module):
    """Noise that reaches one BN directly, one through weights, one behind a skip."""

    make: type
    amount: float
    width: int = 64

    @nn.compact
    def __call__(self, x, train=False):
        def norm(x):
            scale = nn.initializers.constant(1.3)
            layer = nn.BatchNorm(momentum=0.0, scale_init=scale)
            return layer(x, use_running_average=not train)

        def drop(x):
            return self.make(self.amount)(x, deterministic=not train)

        x = norm(nn.Dense(self.width)(x))
        direct = norm(drop(nn.Dense(self.width)(x)))
        through = norm(nn.Dense(self.width)(drop(nn.relu(x))))
        skip = norm(nn.Dense(self.width)(x) + nn.Dense(self.width)(drop(nn.relu(x))))
        return direct + through + skip


@pytest.mark.parametrize(
    ("make", "amount"), [(nn.Dropout, 0.4), (noise.Uout, 0.9)], ids=lambda v: getattr(v, "__name__", v)
)
def test_the_ratio_is_what_is_measured(make, amount):
    """After one training step on 30,000 images whose statistics are kept whole (momentum 0).

    The ratio is that of one noise alone, so every BN has one, behind an input without noise.
    """
    model = Three(make, amount)
    x = jax.random.normal(jax.random.key(0), (30_000, 64))
    variables = model.init(jax.random.key(1), x[:2])
    rngs = {"dropout": jax.random.key(2)}
    _, stats = jax.jit(lambda v: modes.apply(model, v, x, mode=modes.TRAIN, rngs=rngs))(variables)
    variables = {**variables, "batch_stats": stats}
    measured = shift.measure(model, variables, [x]).rows[1:]
    found = lint.check(model, x[:2], variables=variables)
    rows = {row["norm"]: row for row in found.rows if row["way"]}
    assert [rows[row["layer"]]["way"] for row in measured] == ["directly", "through weights", "into a skip"]
    for row in measured:  # 64 channels of 30,000 values each: an error well below 1 %.
        assert rows[row["layer"]]["ratio"] == pytest.approx(row["ratio"], rel=0.02)
    # Without variables: for weights of mean 0 the same in expectation, a lower bound behind a skip.
    blind = {row["norm"]: row for row in lint.check(model, x[:2]).rows if row["way"]}
    for row in measured[:2]:
        assert blind[row["layer"]]["ratio"] == pytest.approx(row["ratio"], rel=0.1)
    assert blind[measured[2]["layer"]]["ratio"] < measured[2]["ratio"]
    assert "at least this" in blind[measured[2]["layer"]]["assumption"]


def test_the_ratio_is_that_of_each_power():
    """v / (v + s2 (c^2 + v)) behind x^n of a unit Gaussian: c, v = 1, 2 for n = 2 and 0, 15 for n = 3."""

    class Powers(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for power in (2, 3, 2):
                x = nn.BatchNorm()(nn.Dense(8)(x), use_running_average=not train) ** power
                x = nn.BatchNorm()(nn.Dropout(0.5)(x, deterministic=not train), use_running_average=not train)
            return x

    found = [row["ratio"] for row in lint.check(Powers(), jnp.ones((2, 4))).errors()]
    np.testing.assert_allclose(found, [2 / 5, 15 / 30, 2 / 5], rtol=1e-5)


def test_advice_keeps_the_ratio():
    report = lint.check(Three(nn.Dropout, 0.5), jnp.ones((4, 64)))
    direct, through = (
        next(row for row in report.rows if row["code"] == code) for code in ("DBN101", "DBN102")
    )
    for row in (direct, through):
        rate = float(row["advice"].partition("a rate up to ")[2].split()[0])
        beta = float(row["advice"].partition("Uout up to ")[2].rstrip("."))
        for make, amount in ((nn.Dropout, rate), (noise.Uout, beta)):
            again = lint.check(Three(make, amount), jnp.ones((4, 64)))
            ratio = next(r["ratio"] for r in again.rows if r["norm"] == row["norm"])
            assert ratio == pytest.approx(0.95, abs=0.005)


def test_noise_moves_to_the_last_bn_and_the_checkpoint_still_loads():
    class Wrn(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            for i in (1, 2):
                y = nn.relu(nn.BatchNorm(name=f"{i}bn1")(x, use_running_average=not train))
                y = nn.Dropout(0.5, name=f"{i}drop")(nn.Dense(32)(y), deterministic=not train)
                y = nn.relu(nn.BatchNorm(name=f"{i}bn2")(y, use_running_average=not train))
                x = x + nn.Dense(32)(y)
            return nn.Dense(3)(nn.relu(nn.BatchNorm(name="head")(x, use_running_average=not train)))

    x = jax.random.normal(jax.random.key(0), (512, 32))
    variables = Wrn().init(jax.random.key(1), x)
    moved = surgery.move_to_last_bn(Wrn(), x)
    assert lint.check(Wrn(), x).errors() and not lint.check(moved, x).errors()
    ways = {(row["noise"], row["norm"]) for row in lint.check(moved, x).rows if row["way"]}
    assert ways == {("1drop", "2bn1"), ("1drop", "head"), ("2drop", "head")}
    before, after = (
        {row["layer"]: row["ratio"] for row in shift.predict(model, variables, [x]).rows}
        for model in (Wrn(), moved)
    )
    assert before["1bn2"] < 0.6 and after["1bn2"] == pytest.approx(1)
    np.testing.assert_array_equal(moved.apply(variables, x), Wrn().apply(variables, x))
    assert surgery.move_to_last_bn(moved, x) is moved

    plain = Chain(
        (nn.Dropout(0.1, name="a"), nn.Dense(3), nn.BatchNorm(), nn.Dropout(0.2, name="b"), nn.BatchNorm())
    )
    gathered = lint.check(surgery.move_to_last_bn(plain, x), x)
    assert gathered.errors() == [] and gathered.title == "Chain: 1 noise, 2 batch normalizations"


def test_a_frozen_norm_remembers_no_noise():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5, name="drop")(x, deterministic=not train)
            x = nn.BatchNorm(use_running_average=True, name="frozen")(x)
            return nn.BatchNorm(name="live")(x, use_running_average=not train)

    assert _on_the_way(lint.check(Model(), jnp.ones((4, 3)))) == {("error", "directly", "drop", "live")}


def test_a_users_test():
    good = Chain((nn.Dense(3), nn.BatchNorm(), nn.relu, nn.Dropout(0.5), nn.Dense(2)))
    bad = Chain((nn.Dropout(0.2), nn.BatchNorm()))
    lint.assert_no_shift(good, jnp.ones((4, 3)))
    with pytest.raises(AssertionError, match=r"layers_0 -> layers_1: directly, ratio 0\.8"):
        lint.assert_no_shift(bad, jnp.ones((4, 3)))
    lint.assert_no_shift(bad, jnp.ones((4, 3)), below=0.79)


def test_noise_of_unknown_variance_is_an_error_without_a_ratio():
    bad = Chain((noise.Dropout(1.0), nn.BatchNorm()))
    (row,) = lint.check(bad, jnp.ones((4, 3))).errors(below=0.5)
    assert row["ratio"] is None and row["advice"].startswith("Move it")


def test_every_rule_is_documented():
    docs = (ROOT / "docs" / "lint.md").read_text()
    for code, rule in lint.RULES.items():
        assert code in docs and rule.title in docs
        assert rule.find.__doc__ and rule.severity in ("error", "warning", "info")


def _command(directory, *arguments):
    (directory / "net.py").write_text(
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    rate: float\n"
        "    @nn.compact\n"
        "    def __call__(self, x, train=False):\n"
        "        x = nn.Dropout(self.rate, name='drop')(x, deterministic=not train)\n"
        "        return nn.BatchNorm(name='bn')(x, use_running_average=not train)\n"
        "bad = lambda: Net(0.3)\n"
        "good = Net(0.0)\n"
        "text = str\n"
    )
    command = [sys.executable, "-m", "dropbn", "lint", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


def test_a_penalty_that_a_layer_adds_is_no_obstacle(mlp_config):
    """It lies in a collection of its own, not by names alone."""
    mlp_config.model.update({"block": "dense drop sparse bn relu", "num_classes": 10})
    found = lint.check(models.create(mlp_config.model), jnp.ones((2, 8, 8, 1)))
    assert [row["code"] for row in found.rows] == ["DBN101"]


def test_the_command(tmp_path):
    found = _command(tmp_path, "net:bad", "--input=2,5")
    assert found.returncode == 1 and "DBN101" in found.stdout and "0.700" in found.stdout
    assert "net.py:6" in found.stdout
    found = _command(tmp_path, "net:bad", "--input=2,5", "--fail_below=0.6", "--format=json")
    assert found.returncode == 0 and json.loads(found.stdout)[0]["norm"] == "bn"
    found = _command(tmp_path, "net:good", "--input=2,5")
    assert found.returncode == 0 and "nothing found" in found.stdout
    found = _command(tmp_path, "net:text", "--input=2,5")
    assert (
        found.returncode == 2
        and found.stderr == "error: 'net:text' gives a str, not a Linen or NNX module.\n"
    )
    found = _command(tmp_path, "--help")
    assert found.returncode == 0 and "package.module:name --input=2,32,32,3" in found.stdout
    assert {"--input:", "--format:", "--fail_below:", "--num_steps:"} <= {*found.stdout.split()}


def test_shapes_are_checked_where_they_are_given():
    """Without variables the check of Flax is left out, and put back."""
    checked, model = flax.core.Scope.param, Chain((nn.Dense(3), nn.BatchNorm()))
    lint.check(model, jnp.ones((4, 5)))
    assert flax.core.Scope.param is checked
    other = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((4, 6)))
    with pytest.raises(DropbnError, match="do not fit the model"):
        lint.check(model, jnp.ones((4, 5)), variables=jax.tree.map(lambda leaf: jnp.ones(leaf.shape), other))


def test_noise_is_judged_as_surgery_left_it():
    """Directly before a BN, on unit Gaussian inputs: 1 / (1 + s2)."""
    model, x = Chain((nn.Dropout(0.5), nn.BatchNorm())), jnp.ones((8, 3))
    for changed, s2 in (
        (surgery.with_rates(model, {"*": 0.1}), 1 / 9),
        (surgery.swap_noise(model, to=noise.Uout(0.3)), 0.3**2 / 3),
    ):
        [row] = lint.check(changed, x).errors()
        assert row["ratio"] == pytest.approx(1 / (1 + s2), rel=1e-6)


def test_refusals():
    bad = Chain((nn.Dropout(0.2), nn.BatchNorm()))
    with pytest.raises(DropbnError, match="cannot be traced"):
        lint.check(bad)
    with pytest.raises(DropbnError, match=r"cannot be traced with these inputs: .*shape"):
        lint.check(Chain((nn.Conv(3, (3, 3)), lambda x: x @ jnp.ones((7, 2)))), jnp.ones((2, 8, 8, 3)))
    with pytest.raises(DropbnError, match="hold no batch_stats"):
        lint.check(bad, jnp.ones((2, 3)), variables={"params": {}, "batch_stats": {}})
    for target, match in (
        ("net", "give package.module:name"),
        ("no_such_module:net", "gives no model: ModuleNotFoundError"),
    ):
        with pytest.raises(DropbnError, match=match):
            load_model(target)


class BehindWeights(nn.Module):
    """A noise on the output of a BN, before a convolution and another BN."""

    noise: nn.Module

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="first")(x)
        x = self.noise(x, deterministic=not train)
        return nn.BatchNorm(use_running_average=not train, name="second")(nn.Conv(3, (3, 3))(x))


@pytest.mark.parametrize("kind", noise.KINDS)
def test_the_weights_tell_a_ratio_only_where_every_position_has_its_draw(kind):
    model, x = BehindWeights(noise.KINDS[kind](0.2)), jnp.ones((2, 4, 4, 3))
    variables = model.init(jax.random.key(0), x, False)
    second = {"mean": jnp.ones(3), "var": jnp.full(3, 9.0)}  # Trained, so that lint takes them.
    variables = {**variables, "batch_stats": {**variables["batch_stats"], "second": second}}
    [row] = [r for r in lint.check(model, x, variables=variables).rows if r["code"] == "DBN102"]
    assert row["amount"] == 0.2
    kernel, s2 = variables["params"]["Conv_0"]["kernel"], model.noise.s2
    if kind == "alpha":
        # It keeps the variance of a unit Gaussian, so what is found is no error.
        assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["severity"] == "info"
    elif kind in ("dropout", "gaussian", "uout"):
        wanted = (9 - s2 * jnp.square(kernel).sum((0, 1, 2))).mean() / 9
        assert row["ratio"] == pytest.approx(wanted, rel=1e-5)
        assert "running statistics and weights" in row["assumption"]
    else:
        assert row["ratio"] == pytest.approx(0.8) and "weights of mean 0" in row["assumption"]
