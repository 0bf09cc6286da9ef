"""NNX models that are written with transformations, and that hold layers in all ways: as the plain model."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropbn.diagnose import lint, modes, recalibrate, shift, surgery
from dropbn.errors import DropbnError
from dropbn.nn.nnx import norm

BATCHES = [np.random.default_rng(seed).normal(0.3, 1.5, (32, 6)).astype(np.float32) for seed in range(2)]
X = BATCHES[0]


class Block(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.drop = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return x + self.norm(self.drop(self.dense(x)))


def _plain(block, x):
    return block(x)


def _split(block, x):
    graph, state = nnx.split(block)

    @jax.jit
    def run(state, x):
        merged = nnx.merge(graph, state)
        return merged(x), nnx.state(merged)

    y, state = run(state, x)
    nnx.update(block, state)
    return y


def _lost(block, x):
    graph, state = nnx.split(block)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)


def _applied(block, x):
    graph, state = nnx.split(block)
    y, (_, state) = graph.apply(state)(x)
    nnx.update(block, state)
    return y


WAYS = {
    "jit": nnx.jit(_plain),
    "jit of trees": nnx.jit(_plain, graph=False),
    "remat": nnx.remat(_plain),
    "remat of trees": nnx.remat(_plain, graph=False),
    "cond": lambda block, x: nnx.cond(x.sum() > -1e9, _plain, _plain, block, x),
    "split": _split,
    "apply": _applied,
}
LOSING = {
    "jax.jit": lambda block, x: jax.jit(_plain)(block, x),
    "jax.checkpoint": lambda block, x: jax.checkpoint(_plain)(block, x),
    "split": _lost,
    "clone": lambda block, x: nnx.clone(block)(x),
}


class Net(nnx.Module):
    def __init__(self, call, rngs):
        self.call, self.blocks = call, nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, x):
        return functools.reduce(lambda x, block: self.call(block, x), self.blocks, x)


def _moved(model):
    """The model with statistics that no initialization makes."""
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.3, nnx.state(model, nnx.BatchStat)))
    return model


def _found(model, **call):
    """What measure, lint and a recipe that moves statistics say."""
    moved = recalibrate.recalibrate(model, BATCHES, "li2018_moving", **call)
    rows = [*shift.measure(model, BATCHES, **call).rows, *moved.rows, *lint.check(model, X, **call).rows]
    return [{name: row[name] for name in row.keys() - {"line", "layers"}} for row in rows]


def _same(found, wanted):
    for row, other in zip(found, wanted, strict=True):
        assert row == {
            name: pytest.approx(value, 2e-6) if isinstance(value, float) else value
            for name, value in other.items()
        }


@pytest.fixture(scope="module")
def plain():
    return _found(_moved(Net(_plain, nnx.Rngs(0))))


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.slow] * (way != "split")) for way in WAYS],
)
def test_transformations_of_flax_carry_the_state(way, plain):
    _same(_found(_moved(Net(WAYS[way], nnx.Rngs(0)))), plain)


@pytest.mark.parametrize("way", LOSING)
@pytest.mark.slow
def test_a_state_that_is_lost_is_refused(way):
    model = _moved(Net(LOSING[way], nnx.Rngs(0)))
    for recipe in recalibrate.RECIPES.keys() - {"closed_form"}:
        with pytest.raises(DropbnError, match=r"'blocks/0/norm'.* lost, as"):
            recalibrate.recalibrate(model, BATCHES, recipe)
    with pytest.raises(DropbnError, match=r"'blocks/0/norm'.* lost, as"):
        shift.measure(model, BATCHES)


@pytest.mark.slow
def test_switches_of_the_users_do_not_count(plain):
    model = _moved(Net(_plain, nnx.Rngs(0)))
    _same(_found(nnx.view(model, deterministic=True, use_running_average=True)), plain)
    model.set_attributes(deterministic=True, use_running_average=True)
    _same(_found(model), plain)
    with nnx.set_graph_mode(False):
        _same(_found(_moved(Net(_plain, nnx.Rngs(0)))), plain)


@pytest.mark.slow
def test_a_view_within_keeps_its_switch():
    model = _moved(Net(lambda block, x: nnx.view(block, deterministic=True)(x), nnx.Rngs(0)))
    assert [row["noise"] for row in lint.check(model, X).rows if row["noise"]] == []
    keys = {"dropout": jax.random.key(0)}
    outputs = [modes.apply(model, X, mode=modes.TRAIN, rngs=keys)[0] for _ in range(2)]
    np.testing.assert_array_equal(*outputs)


def _real_var(model, x):
    """By name, the variance of the input of each block's norm in test mode, in NumPy."""
    found = {}
    for name, block in model:
        hidden = x @ np.float64(block.dense.kernel[...]) + np.float64(block.dense.bias[...])
        found[name] = hidden.var(0).mean()
        x = x + (hidden - 0.3) / np.sqrt(1.3 + 1e-5)
    return found


class Held(nnx.Module):
    """Blocks in tuples and dicts, and arrays that are no variables."""

    def __init__(self, rngs):
        self.scale, self.array = nnx.data(jnp.full(6, 2.0)), nnx.data(np.ones(6, np.float32))
        self.pair, self.named = nnx.data((Block(rngs), jnp.ones(()))), nnx.data({"a": Block(rngs)})

    def __call__(self, x):
        return self.named["a"](self.pair[0](x * self.scale * self.array)) * self.pair[1]


class Called(nnx.Module):
    """Every switch and every key is given at the call."""

    def __init__(self, rngs):
        self.dense, self.drop = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.5, deterministic=None)
        self.norm = nnx.BatchNorm(6, use_running_average=None, rngs=rngs)

    def __call__(self, x, *, deterministic, rngs=None):
        x = self.drop(self.dense(x), deterministic=deterministic, rngs=rngs)
        return self.norm(x, use_running_average=deterministic)


def _ensemble(rngs):
    return nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs)


@pytest.mark.slow
def test_layers_are_found_wherever_they_are_held():
    x = np.float64(np.concatenate(BATCHES))
    held = _moved(Held(nnx.Rngs(0)))
    assert _measured(held) == pytest.approx(
        _real_var([("pair/0/norm", held.pair[0]), ("named/a/norm", held.named["a"])], 2 * x)
    )
    called = _moved(Called(nnx.Rngs(0)))
    assert _measured(called) == pytest.approx(_real_var([("norm", called)], x))
    assert [row["noise"] for row in lint.check(called, X).rows] == ["drop"]

    members = _moved(_ensemble(nnx.Rngs(0)))
    run = nnx.vmap(_plain, in_axes=(0, None))
    wanted = {}
    for number in range(3):
        member = jax.tree.map(operator.itemgetter(number), nnx.state(members, nnx.Not(nnx.RngState)))
        alone = Block(nnx.Rngs(1))
        nnx.update(alone, member)
        wanted |= _real_var([(f"norm[{number}]", alone)], x)
    call = {"method": lambda members, x: run(members, x).mean(0)}
    assert _measured(members, **call) == pytest.approx(wanted)
    [row] = (row for row in lint.check(members, X, **call).rows if row["norm"])
    assert (row["noise"], row["norm"]) == ("drop", "norm")


def _measured(model, **call):
    return {row["layer"]: row["real_var"] for row in shift.measure(model, BATCHES, **call).rows}


@pytest.mark.slow
def test_a_norm_with_groups_goes_back_and_forth():
    class Grouped(Block):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.norm = norm.BatchNorm(6, group_size=8, rngs=rngs)

    model = _moved(Grouped(nnx.Rngs(0)))
    assert _measured(model) == pytest.approx(
        _real_var([("norm", model)], np.float64(np.concatenate(BATCHES)))
    )
    _, stats = modes.apply(
        surgery.without_noise(model), X, mode=modes.TRAIN, rngs={"dropout": jax.random.key(0)}
    )
    hidden = np.float64(X) @ np.float64(model.dense.kernel[...])
    groups = hidden.reshape(4, 8, 6)
    np.testing.assert_allclose(stats["norm"]["var"], 0.9 * 1.3 + 0.1 * groups.var(1).mean(0), 1e-5)
