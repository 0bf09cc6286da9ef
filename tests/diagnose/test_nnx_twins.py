"""NNX models are measured, predicted, repaired, explained and linted as their Linen twins."""

from functools import partial

import jax
import jax.numpy as jnp
import linen_models
import lint_models
import nnx_lint_models
import nnx_models
import numpy as np
import pytest
from flax import nnx

from dropbn.diagnose import gap, lint, recalibrate, shift, surgery, uncertainty
from dropbn.errors import DropbnError
from dropbn.nn import layers, noise, norm, order
from dropbn.nn.nnx import layers as nnx_layers
from dropbn.nn.nnx import noise as nnx_noise
from dropbn.nn.nnx import norm as nnx_norm
from dropbn.nn.nnx import variables

S = layers.Size

RECIPES = "dropout_off", "li2018_moving", "hendrycks2016", "precise_bn"
DEFAULT = ["DropoutBehindIf", "SharedNorm"]
OTHERS = ["CallFlags", "ConstructorFlags", "Scanned", "Rematted", "HalfPrecision", "Frozen", "Jitted"]
OTHERS += ["OwnSignature", "Carried"]
TWINS = [*DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


pytestmark = pytest.mark.usefixtures("same_draws")


def _drawn(stats):
    """Statistics that no initialization makes."""
    drawn = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: drawn.uniform(0.5, 1.5, leaf.shape).astype(np.float32), stats)


def _twins(name):
    """A Linen model, its variables with drawn statistics, and its NNX twin with the same inside."""
    linen, twin = getattr(linen_models, name)(), getattr(nnx_models, name)(nnx.Rngs(0))
    # Of the NNX model, because Linen cannot initialize statistics that nn.scan carries.
    stats = _drawn(nnx.to_pure_dict(nnx.state(twin, nnx.BatchStat)))
    nnx.update(twin, stats)
    return linen, {"params": nnx.to_pure_dict(nnx.state(twin, nnx.Param)), "batch_stats": stats}, twin


def _batches(shape, number):
    return [np.random.default_rng(seed).normal(0.3, 1.5, shape).astype(np.float32) for seed in range(number)]


BATCHES = _batches((23, 4, 4, 3), 3)


def _same(found, wanted, rtol=2e-6, atol=1e-7):
    """Whether rows are the same, numbers up to rounding; or the same sentence."""
    if isinstance(found, str) or isinstance(wanted, str):
        assert found == wanted
        return
    assert len(found) == len(wanted)
    for row, other in zip(found, wanted, strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            if name in ("line", "layers"):
                continue
            if isinstance(value, float):
                np.testing.assert_allclose(row[name], value, rtol, atol, err_msg=f"{other}: {name}")
            elif name == "advice":  # It names the files of noises that are drawn by hand.
                assert (
                    row[name].partition("models.py")[0].replace("nnx_", "") == value.partition("models.py")[0]
                )
            else:
                assert row[name] == value


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_measured_predicted_and_linted_alike(name):
    linen, variables, twin = _twins(name)
    rtol = 2e-2 if name == "HalfPrecision" else 2e-6
    _same(shift.measure(twin, BATCHES).rows, shift.measure(linen, variables, BATCHES).rows, rtol)
    found = shift.predict(twin, BATCHES)
    _same(found.rows, shift.predict(linen, variables, BATCHES).rows, rtol, 1e-6)
    # Half of the values are dropped somewhere.
    assert name == "Frozen" or min(row["ratio"] for row in found.rows) < 0.9
    wanted = lint.check(linen, BATCHES[0], variables=variables).rows
    _same(lint.check(twin, BATCHES[0]).rows, wanted)
    assert any(row["code"] == "DBN101" for row in wanted)


@pytest.mark.parametrize("name", [*DEFAULT, *OTHERS])
@pytest.mark.slow
def test_twins_are_repaired_and_explained_alike(name):
    linen, variables, twin = _twins(name)
    rough = 5e-3 if name == "HalfPrecision" else 1e-5
    for recipe in RECIPES:
        if (name, recipe) == ("Carried", "li2018_moving"):
            with pytest.raises(DropbnError, match=r"nn.scan carries batch_stats .* take another mode"):
                recalibrate.recalibrate(linen, variables, BATCHES, recipe)
        else:
            _same_statistics(twin, (linen, variables), BATCHES, recipe, rough)
    batches = [(x, np.arange(23) % 3) for x in BATCHES]
    # Rounding to bfloat16 turns one or two of the 69 predictions.
    _same_gap(twin, (linen, variables), batches, 0.3 if name == "HalfPrecision" else 1e-4)


@pytest.mark.parametrize("family", nnx_lint_models.FAMILIES)
@pytest.mark.slow
def test_labelled_families_are_treated_alike(family):
    case = nnx_lint_models.FAMILIES[family]
    x = jnp.ones(case.shape)
    given = case.model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, train=False)
    if "batch_stats" in given:
        given = {**given, "batch_stats": _drawn(given["batch_stats"])}
    twin = nnx_lint_models.twin(case, nnx.Rngs(0))
    nnx.update(twin, variables.from_linen(given, twin))
    batches = _batches((8, *case.shape[1:]), 2)
    returned = jax.eval_shape(lambda x: case.model.apply(given, x, train=False), batches[0])
    several = {"outputs": 0} if isinstance(returned, tuple) else {}
    shape = jax.tree.leaves(returned)[0].shape[:-1]
    recipes = "dropout_off", "li2018_moving"
    _same_everywhere(twin, (case.model, given), batches, recipes, shape, num_samples=2, **several)


@pytest.mark.parametrize("case", lint_models.CASES, ids=lambda case: case.name)
@pytest.mark.slow
def test_labelled_networks_are_linted_alike(case):
    shapes = nnx.eval_shape(lambda: nnx_lint_models.twin(case, nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct(case.shape, jnp.float32)
    _same(lint.check(shapes, x).rows, lint.check(case.model, x).rows)


def _same_everywhere(twin, linen, batches, recipes, shape, **options):
    """Whether all tools agree; the labels have the given shape."""
    _same(_rows(shift.measure, twin, batches), _rows(shift.measure, *linen, batches), 2e-5)
    _same(_rows(shift.predict, twin, batches), _rows(shift.predict, *linen, batches), 1e-4, 1e-6)
    model, given = linen
    _same(lint.check(twin, batches[0]).rows, lint.check(model, batches[0], variables=given).rows, 1e-4)
    for recipe in recipes:
        _same_statistics(twin, linen, batches, recipe, 1e-4)
    labelled = [(x, np.arange(np.prod(shape)).reshape(shape) % 3) for x in batches]
    _same_gap(twin, linen, labelled, 1e-4, **options)


def _rows(tool, *arguments):
    """What a tool finds, or the sentence with which it refuses."""
    try:
        return tool(*arguments).rows
    except DropbnError as error:
        return str(error)


def _same_statistics(twin, linen, batches, recipe, tolerance):
    try:
        wanted = recalibrate.recalibrate(*linen, batches, recipe)
    except DropbnError as error:
        with pytest.raises(DropbnError) as refused:
            recalibrate.recalibrate(twin, batches, recipe)
        assert str(refused.value) == str(error)
        return
    found = recalibrate.recalibrate(twin, batches, recipe)
    _same(found.rows, wanted.rows, tolerance, tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
        found.batch_stats,
        wanted.batch_stats,
    )


def _same_gap(twin, linen, batches, tolerance, **options):
    found = gap.explain(twin, batches, batches, **options)
    wanted = gap.explain(*linen, batches, batches, **options)
    for table in ("shares", "remedies"):
        _same(getattr(found, table).rows, getattr(wanted, table).rows, tolerance, tolerance / 10)
    assert (found.unseen, found.draws) == (wanted.unseen, wanted.draws)


@pytest.mark.slow
def test_an_order_with_groups_is_treated_alike():
    """`Layers` of nn.nnx, with batch normalizations over groups of images."""
    text, sizes = (
        "[bn relu conv drop bn relu conv | conv] gap drop dense bn",
        (S(4, 3, 2), S(4, 3), S(4, 1, 2)),
    )
    both = order.parse(text), (*sizes, S(3))
    parts = layers.Parts(partial(norm.BatchNorm, group_size=8), partial(noise.Dropout, 0.5))
    nnx_parts = layers.Parts(partial(nnx_norm.BatchNorm, group_size=8), partial(nnx_noise.Dropout, 0.5))
    linen, twin = (
        layers.Layers(*both, parts),
        nnx_layers.Layers(*both, nnx_parts, (1, 6, 6, 2), rngs=nnx.Rngs(0)),
    )
    given = variables.to_linen(twin)
    given = {**given, "batch_stats": _drawn(given["batch_stats"])}
    nnx.update(twin, variables.from_linen(given, twin))
    batches = _batches((24, 6, 6, 2), 2)
    _same_everywhere(twin, (linen, given), batches, RECIPES, (24,), num_samples=2)
    labelled = [(x, np.arange(24) % 3) for x in batches]
    found, wanted = (
        uncertainty.sample(*each, labelled, num_samples=3).rows for each in ((twin,), (linen, given))
    )
    _same(found, wanted, 1e-4, 1e-5)
    changes = {
        "without": surgery.without_noise,
        "rates": lambda model: surgery.with_rates(model, {"drop1": 0.1}),
        "last": lambda model: surgery.move_to_last_bn(model, batches[0]),
    }
    for change in changes.values():
        found, wanted = (lint.check(change(model), batches[0], variables=given) for model in (twin, linen))
        findings = [
            {row["norm"]: row["ratio"] for row in report.rows if row["norm"]} for report in (found, wanted)
        ]
        assert findings[0] == pytest.approx(findings[1], rel=1e-4)
