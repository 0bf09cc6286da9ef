"""Every remedy against its own call, and networks whose right remedy and gain are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_gap import ENERGY, TRAIN, Energy, Net, _data, _variables

from dropbn.diagnose import gap, modes, recalibrate, uncertainty
from dropbn.errors import DropbnError

LABELS = np.concatenate([y for _, y in TRAIN])


def _rows(found):
    return {row["remedy"]: row for row in found.remedies.rows}


def test_a_shift_is_mended_without_noise_by_own_statistics_or_by_draws():
    """All of class 1 is lost; statistics that noise had inflated leave it lost."""
    found = gap.explain(Energy(), _variables(2 * ENERGY), TRAIN, TRAIN)
    rows, lost = _rows(found), LABELS.mean()
    assert rows["precise BN with noise"]["gain"] == pytest.approx(0, abs=1e-9)
    # Noise makes 1.3^2 / ENERGY of 1.3^2 / (2 ENERGY) again, and so for class 0.
    for name in ("recalibrated statistics", "batch statistics", "mean of 10 draws"):
        row = rows[name]
        assert row["accuracy_before"] == pytest.approx(1 - lost, abs=1e-9)
        assert row["gain"] == pytest.approx(lost, abs=1e-9) and row["accuracy"] == 1
    # The four parts are right about all images too: what is left is the error over images.
    error = (lost * (1 - lost) / (len(LABELS) - 1)) ** 0.5
    assert rows["recalibrated statistics"]["error"] == pytest.approx(error, rel=1e-9)
    quantile = stats.t.ppf(1 - 0.05 / 4, len(LABELS) - 1)
    assert rows["recalibrated statistics"]["least"] == pytest.approx(lost - quantile * error)
    words = f"comes from recalibrated statistics: {100 * lost:.1f} +- {100 * error:.1f} points"
    assert words in found.advice
    assert "The call is recalibrate.recalibrate(model, variables, train_batches)." in found.advice


def test_the_advice_gives_the_gain_on_test_images():
    """Stale statistics lose class 1. On test images, 40 % of them with a wrong label, new ones gain less."""
    test = _data(1, label_noise=0.4)
    found = gap.explain(Energy(rate=0.0), _variables(3 * ENERGY), TRAIN, test)
    labels = np.concatenate([y for _, y in test])
    energies = np.concatenate([np.square(x).mean(-1) for x, _ in test]) / ENERGY
    gained = ((energies > 1) == labels).astype(float) - ((energies / 3 > 1) == labels)
    row = _rows(found)["recalibrated statistics"]
    assert row["gain"] == pytest.approx(gained.mean(), abs=1e-9)
    assert row["error"] == pytest.approx((gained.var(ddof=1) / len(labels)) ** 0.5, rel=1e-9)
    lost = {row["cause"]: row["accuracy"] for row in found.shares.rows}["lagging statistics"]
    assert lost == pytest.approx(LABELS.mean(), abs=1e-9)
    assert row["gain"] < lost / 3
    words = f"{100 * row['gain']:.1f} +- {100 * row['error']:.1f} points"
    assert f"gain on test images that exceeds its error comes from recalibrated statistics: {words}" in (
        found.advice
    )


@pytest.fixture(scope="module")
def trained():
    """An untrained net, six batches for its statistics and three to be tested on, with random labels."""
    images = np.asarray(jax.random.normal(jax.random.key(0), (9 * 20, 3, 3, 1)))
    variables = Net().init(jax.random.key(1), images)
    given = {"mean": jnp.full(8, 0.5), "var": jnp.full(8, 3.0)}
    variables = {**variables, "batch_stats": {"bn": given}}
    labels = np.random.default_rng(2).integers(0, 3, len(images))
    batches = [(images[i : i + 20], labels[i : i + 20]) for i in range(0, len(images), 20)]
    return variables, batches[:6], batches[6:], gap.explain(Net(), variables, batches[:6], batches[6:])


def _right(variables, batches, mode=modes.TEST):
    logits = [modes.apply(Net(), variables, x, mode=mode)[0] for x, _ in batches]
    return (np.concatenate(logits).argmax(-1) == np.concatenate([y for _, y in batches])).astype(float)


def test_every_row_is_what_its_call_gives(trained):
    variables, train_batches, test_batches, found = trained
    names = {
        "recalibrate": recalibrate,
        "modes": modes,
        "uncertainty": uncertainty,
        "model": Net(),
        "variables": variables,
    }
    names |= {"train_batches": train_batches, "test_batches": test_batches}
    accuracies = []
    for row in found.remedies.rows:
        if row["remedy"] == "batch statistics":
            outputs = [eval(row["call"], names | {"x": x})[0] for x, _ in test_batches]
            right = np.concatenate(outputs).argmax(-1) == np.concatenate([y for _, y in test_batches])
        elif row["remedy"] == "mean of 10 draws":
            mean = eval(row["call"], names).mean
            right = mean.argmax(-1) == np.concatenate([y for _, y in test_batches])
        else:
            given = {**variables, "batch_stats": eval(row["call"], names).batch_stats}
            right = _right(given, test_batches)
        accuracies.append(right.mean())
        before = _right(variables, test_batches)
        assert row["accuracy"] == pytest.approx(right.mean(), abs=1e-9)
        assert row["accuracy_before"] == pytest.approx(before.mean(), abs=1e-9)
        assert row["gain"] == pytest.approx((right - before).mean(), abs=1e-9)
    assert len(accuracies) == 4 and len(set(accuracies)) > 2


@pytest.mark.parametrize(
    ("remedy", "recipe"),
    [
        ("recalibrated statistics", {}),
        ("precise BN with noise", {"recipe": "precise_bn", "noise": True}),
    ],
)
def test_the_error_has_the_spread_of_four_parts(trained, remedy, recipe):
    variables, train, test, found = trained

    def gained(batches, key):
        new = recalibrate.recalibrate(Net(), variables, batches, rngs={"dropout": key}, **recipe)
        return _right({**variables, "batch_stats": new.batch_stats}, test) - _right(variables, test)

    key = jax.random.key(0)
    whole = gained(train, key)
    parts = [gained(train[i::4], jax.random.fold_in(key, i)).mean() for i in range(4)]
    variance = whole.var(ddof=1) / len(whole) + np.var(parts, ddof=1) / 4
    assert np.var(parts) > 0
    assert _rows(found)[remedy]["error"] == pytest.approx(variance**0.5, rel=1e-9)


def test_parts_of_a_pass_that_ended_early_count_by_their_images():
    """A pass over all 32 batches ends after 8 of them; each part of 8 batches is as large."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 1, (33, 64, 1)).astype(np.float32)

    class Sign(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(name="bn")(x, use_running_average=not train)
            return jnp.concatenate([jnp.zeros_like(x), x], -1)

    variables = Sign().init(jax.random.key(0), x[0])
    # Equal variances in all batches, so that the variance is known after eight.
    x[:-1] = (x[:-1] - x[:-1].mean(1, keepdims=True)) / x[:-1].std(1, keepdims=True)
    x[:-1] += rng.normal(0.3, 0.2, (32, 1, 1))
    train, test = [(of, of[:, 0] > 0) for of in x[:-1]], [(x[-1], x[-1][:, 0] > 0.3)]
    found = gap.explain(Sign(), variables, train, test)
    assert recalibrate.recalibrate(Sign(), variables, train).num_images == 8 * 64

    def gained(batches):
        mean = np.concatenate([of for of, _ in batches]).mean()
        labels = test[0][1]
        return ((x[-1][:, 0] > mean) == labels).astype(float) - ((x[-1][:, 0] > 0) == labels)

    whole, parts = gained(train[:8]), [gained(train[i::4]).mean() for i in range(4)]
    variance = whole.var(ddof=1) / 64 + np.var(parts, ddof=1)
    assert np.var(parts) > 0
    assert _rows(found)["recalibrated statistics"]["error"] == pytest.approx(variance**0.5, rel=1e-6)


class Dead(nn.Module):
    """A network whose BN sees the same value everywhere."""

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.BatchNorm(name="bn")(0 * x + 1, use_running_average=not train)
        return nn.Dropout(0.5)(x + h, deterministic=not train)


def test_a_remedy_that_cannot_be_tried_is_named():
    x = np.asarray(jax.random.normal(jax.random.key(0), (40, 3)))
    batches = [(x[:20], x[:20].argmax(-1)), (x[20:], x[20:].argmax(-1))]
    found = gap.explain(Dead(), Dead().init(jax.random.key(1), x), batches, batches)
    assert set(found.remedies.failed) == {"recalibrated statistics", "precise BN with noise"}
    assert list(_rows(found)) == ["batch statistics", "mean of 10 draws"]
    assert "Could not try recalibrated statistics: The input of 'bn' does not vary" in found.advice


def test_which_remedies_apply():
    def names(model, variables, **given):
        return list(_rows(gap.explain(model, variables, TRAIN, TRAIN, **given)))

    of_norm = ["recalibrated statistics", "precise BN", "batch statistics"]
    assert names(Energy(rate=0.0), _variables(ENERGY)) == of_norm
    with_noise = ["recalibrated statistics", "precise BN with noise", "batch statistics"]
    assert names(Energy(), _variables(ENERGY), num_samples=0) == with_noise
    assert names(Energy(), _variables(ENERGY), num_samples=3) == [*with_noise, "mean of 3 draws"]
    plain = nn.Dense(2)
    variables = plain.init(jax.random.key(0), TRAIN[0][0])
    found = gap.explain(plain, variables, TRAIN, TRAIN)
    assert found.remedies.rows == [] and "No remedy was tried: no BN takes statistics" in found.advice
    with pytest.raises(DropbnError, match="no batch normalization"):
        gap.explain(nn.Dropout(0.5), _variables(ENERGY), TRAIN, TRAIN)
