"""An examination from beginning to end, on a network whose shift and gap have closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dropbn.diagnose import gap, shift
from dropbn.diagnose.examine import STEPS, examine
from dropbn.errors import DropbnError

RATE = 0.5


class Threshold(nn.Module):
    """Says whether |x| is above 1, if BN divides by the standard deviation of x."""

    rate: float = RATE

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(self.rate, name="noise")(x, deterministic=not train)
        norm = nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False, name="norm")
        return jnp.concatenate([jnp.zeros_like(x), jnp.abs(norm(x)) - 1], -1)


def _batches(seed, number=20):
    x = np.random.default_rng(seed).normal(size=(number, 500, 1)).astype(np.float32)
    return [(each, (np.abs(each) > 1)[:, 0].astype(int)) for each in x]


def _variables(var):
    return {"batch_stats": {"norm": {"mean": jnp.zeros(1), "var": jnp.full(1, var)}}}


@pytest.fixture(scope="module")
def found():
    return examine(Threshold(), _variables(1 / (1 - RATE)), _batches(0), _batches(1))


def test_the_shift_and_its_cost_are_those_of_the_closed_forms(found):
    (measured,), (predicted,) = found.measured.rows, found.predicted.rows
    # Of 10,000 values: 2 % is three standard errors of a variance, and rather more of the drawn one.
    np.testing.assert_allclose([measured["ratio"], predicted["ratio"]], 1 - RATE, rtol=0.04)
    # BN divides by sqrt(2): those with 1 < |x| < sqrt(2) are wrong.
    wrong = 2 * (stats.norm.cdf(np.sqrt(2)) - stats.norm.cdf(1))
    best = {row["remedy"]: row for row in found.gap.remedies.rows}["recalibrated statistics"]
    error = np.sqrt(wrong * (1 - wrong) / 10_000)
    assert abs(best["gain"] - wrong) < 4 * error + 0.01  # the statistics, too, are estimates
    assert found.repair == "dropout_off"
    assert "Take recalibrated statistics" in found.recommendation
    shift, lost, helps = found.verdict
    assert f"'norm' has {measured['ratio']:.2f} times the variance" in shift
    assert "1 of 1 batch normalizations is off by more than 5 %" in shift
    assert "variance shift" in lost
    assert f"recalibrated statistics gains {100 * best['gain']:.1f} ±" in helps
    assert not found.not_seen


def test_the_layers_are_listed_with_the_lines_that_call_them(found):
    rows = {row["layer"]: row for row in found.rows}
    assert rows["noise"]["kind"] == "noise" and rows["noise"]["amount"] == RATE
    assert (rows["noise"]["training"], rows["noise"]["test"]) == ("on", "off")
    assert (rows["norm"]["training"], rows["norm"]["test"]) == ("the batch's", "running")
    assert all(row["line"].startswith("test_examine.py:") for row in rows.values())


def test_training_with_weaker_noise_keeps_the_ratio_that_is_said(found):
    now, *changes = found.retraining.rows
    assert now["ratio"] == found.predicted.rows[0]["ratio"]
    weaker = next(row for row in changes if row["change"].startswith("noise of rate"))
    rate = float(weaker["change"].split()[3].rstrip(","))
    s2 = rate / (1 - rate)
    np.testing.assert_allclose(weaker["ratio"], 1 / (1 + s2), rtol=0.01)
    assert 0.95 <= weaker["ratio"] < 0.96
    beta = float(weaker["change"].split()[-1])
    np.testing.assert_allclose(beta**2 / 3, s2, rtol=0.06)  # both are rounded to two digits


def test_nothing_is_wrong_where_nothing_is():
    found = examine(Threshold(rate=0.0), _variables(1.001), _batches(0), _batches(1))
    assert found.recommendation.startswith("Nothing is wrong")
    assert found.repair == "" and len(found.retraining.rows) == 1


def test_without_data_it_says_what_was_not_done():
    x = jax.ShapeDtypeStruct((500, 1), jnp.float32)
    found = examine(Threshold(), _variables(2.0), example=x)
    np.testing.assert_allclose(found.predicted.rows[0]["ratio"], 1 - RATE, rtol=0.15)
    assert {*found.skipped} == {STEPS[2], STEPS[3]}
    assert found.recommendation.startswith("Train with") and len(found.not_seen) == 2
    untrained = examine(Threshold(), None, example=x)
    assert untrained.predicted is None and {*untrained.skipped} == {*STEPS[1:]}
    assert "Lint finds noise" in untrained.verdict[0]
    assert found.not_seen[0] == f"The step '{STEPS[2]}' was not done: No batches were given."
    with pytest.raises(DropbnError, match="Give batches, or example="):
        examine(Threshold(), _variables(2.0))


def test_several_inputs_are_drawn_without_batches():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x, y, train):
            return Threshold()(x + 2 * y, train)

    x = jax.ShapeDtypeStruct((2000, 1), jnp.float32)
    variables = {"batch_stats": {"Threshold_0": _variables(2.0)["batch_stats"]}}
    (row,) = examine(Sum(), variables, example=(x, x)).predicted.rows
    # Both inputs have the same values, so their sum has variance 9.
    np.testing.assert_allclose(row["real_var"], 9, rtol=0.1)


def test_a_variance_that_is_remembered_too_small_is_wrong_too():
    found = examine(Threshold(rate=0.0), _variables(0.2), _batches(0))
    np.testing.assert_allclose(found.measured.rows[0]["ratio"], 5, rtol=0.05)
    assert found.recommendation.startswith("Take the statistics again")


def test_larger_batches_are_predicted_for_all_layers():
    """Against a prediction in batches of twice as many images, with noise before one BN of two."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            clean = nn.BatchNorm(use_running_average=not train, name="clean")(x)
            return Threshold()(x, train) + clean

    x = np.random.default_rng(0).normal(size=(4000, 10, 1)).astype(np.float32)
    norm = {"mean": jnp.zeros(1), "var": jnp.full(1, 2.0)}
    variables = {"params": {"clean": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}}
    variables["batch_stats"] = {"clean": norm, "Threshold_0": {"norm": norm}}
    found = examine(Two(), variables, list(x))
    twice = next(row for row in found.retraining.rows if row["change"].startswith("batches of twice"))
    rows = shift.predict(Two(), variables, list(x.reshape(2000, 20, 1))).rows
    wanted = min(rows, key=lambda row: row["ratio"])
    assert twice["layer"] == wanted["layer"] == "Threshold_0/norm"
    np.testing.assert_allclose(twice["ratio"], wanted["ratio"], rtol=0.02)


def test_without_a_prediction_nothing_is_predicted_of_training(monkeypatch):
    def refused(*args, **kwargs):
        raise DropbnError("Refused.")

    monkeypatch.setattr(shift, "predict", refused)
    found = examine(Threshold(), _variables(2.0), _batches(0))
    assert found.skipped[STEPS[1]] == "Refused." and found.skipped[STEPS[4]] == "The shift is not predicted."
    assert found.measured


def test_what_was_found_before_ctrl_c_is_kept(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(gap, "explain", interrupted)
    found = examine(Threshold(), _variables(2.0), _batches(0), _batches(1))
    assert found.measured and found.gap is None and found.retraining is None
    assert {*found.skipped} == {*STEPS[3:]} and "Ctrl-C stopped it" in found.not_seen[0]
    assert "recalibrate.recalibrate" in found.recommendation
