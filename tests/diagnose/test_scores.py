"""Errors of differences against NumPy and against what they are over fresh draws."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy import stats

from dropbn.diagnose import gap, modes, uncertainty
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.linen import Model
from dropbn.diagnose.scores import Difference, Scorer, Scores, difference

RNG = np.random.default_rng(0)


def _scores(correct, **others):
    return Scores(np.zeros(len(correct)), np.asarray(correct, float), **others)


def test_over_images_paired_and_not():
    a, b = RNG.random(50), RNG.random(50)
    paired = difference(_scores(a), _scores(b), "correct")
    found = stats.ttest_rel(b, a)
    assert paired.value / paired.error == pytest.approx(found.statistic)
    assert paired.degrees == pytest.approx(found.df)
    b = 3 * RNG.random(20)
    apart = difference(_scores(a), _scores(b), "correct", paired=False)
    found = stats.ttest_ind(b, a, equal_var=False)  # Welch's, whose degrees are Satterthwaite's
    assert apart.value / apart.error == pytest.approx(found.statistic)
    assert apart.degrees == pytest.approx(found.df)
    interval = stats.ttest_ind(b, a, equal_var=False, alternative="greater").confidence_interval(1 - 0.05 / 3)
    assert apart.least(3) == pytest.approx(interval.low)


def test_what_is_not_known():
    one = _scores(RNG.random(1))
    assert difference(one, one, "correct").error is None
    many = _scores(RNG.random(9))
    batch = _scores(RNG.random(9), batch=np.zeros(9, int))
    assert difference(many, batch, "correct").error is None
    assert difference(many, _scores(RNG.random(9), parts=()), "correct").least(1) is None
    assert difference(many._replace(correct=None), many._replace(correct=None), "correct") is None
    assert difference(many, many, "correct") == Difference(0.0, 0.0, np.inf)


def test_images_of_a_batch_share_its_statistics():
    """Over 4,000 draws: each batch of 5 images has an effect of its own, of variance 0.04 beside 0.25."""
    number, size = 12, 5
    batch = np.repeat(np.arange(number), size)
    drawn = RNG.normal(0, 0.2, (4000, number))[:, batch] + RNG.normal(0, 0.5, (4000, number * size))
    errors = [
        difference(_scores(np.zeros(number * size)), _scores(values, batch=batch), "correct").error
        for values in drawn
    ]
    truth = 0.04 / number + 0.25 / (number * size)
    assert drawn.mean(1).var() == pytest.approx(truth, rel=0.1)
    # The larger of two estimates is above the truth, but for less than a fifth.
    assert truth < np.mean(np.square(errors)) < 1.2 * truth
    alone = np.mean(drawn.var(1, ddof=1)) / (number * size)
    assert alone < 0.7 * truth
    values, sums = drawn[0], drawn[0].reshape(number, size).sum(1)
    clustered = number * sums.var(ddof=1) / values.size**2
    wanted = max(clustered, values.var(ddof=1) / values.size)
    assert errors[0] == pytest.approx(wanted**0.5)


def test_parts_tell_the_variance_of_statistics():
    """An accuracy that falls linearly with a mean over 64 training values, over 4,000 draws of them.

    Its variance is slope^2 sd^2 / 64; the mean estimate over the draws has a relative standard error of
    sqrt(2 / 3 / 4000) = 1.3 %.
    """
    slope, sd, right = 0.1, 2.0, np.ones(100)
    values = RNG.normal(0, sd, (4000, 64))
    estimates = []
    for drawn in values:
        parts = tuple(_scores(0.5 - slope * part.mean() * right) for part in drawn.reshape(4, 16))
        after = _scores(0.5 - slope * drawn.mean() * right, parts=parts, share=1 / 4)
        estimates.append(difference(_scores(right), after, "correct").error ** 2)
    truth = slope**2 * sd**2 / 64
    assert np.var(slope * values.mean(1)) == pytest.approx(truth, rel=4 * (2 / 4000) ** 0.5)
    assert np.mean(estimates) == pytest.approx(truth, rel=4 * 0.013)


def test_both_with_parts_are_paired_by_part():
    noise = RNG.random(4)
    before, after = (
        _scores(np.zeros(9), parts=tuple(_scores(np.full(9, shift + part)) for part in noise), share=0.25)
        for shift in (0, 0.5)
    )
    assert difference(before, after, "correct").error == pytest.approx(0, abs=1e-12)
    assert difference(_scores(np.zeros(9)), after, "correct").error == pytest.approx(noise.std(ddof=1) / 2)


def test_least_keeps_its_level():
    """Of 4 gains without effect over 40 images, the chance that any is above 0 is at most 5 %."""
    number = 4000
    drawn = RNG.normal(0, 1, (number, 4, 40))
    above = 0
    for gains in drawn:
        found = [difference(_scores(np.zeros(40)), _scores(gain), "correct") for gain in gains]
        above += any(gain.least(4) > 0 for gain in found)
    chance = 1 - (1 - 0.05 / 4) ** 4
    assert above / number == pytest.approx(chance, abs=4 * (chance / number) ** 0.5)


def test_scores_of_given_outputs_are_those_of_the_model():
    x = RNG.normal(size=(10, 3)).astype(np.float32)
    batches = Batches([x[:4], x[4:8], x[8:]])

    def score(outputs, batch):
        return {"loss": -np.asarray(jax.nn.log_softmax(outputs))[:, 0], "correct": batch[:, 0] > 0}

    scorer = Scorer(Model.of(nn.Dense(3)), batches, "test", score)
    variables = nn.Dense(3).init(jax.random.key(0), x)
    wanted, outputs = scorer(variables, modes.TEST)
    found = scorer.of_outputs(outputs)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.correct, x[:, 0] > 0)
    assert wanted.batch is None
    by_batch, _ = scorer(variables, modes.Mode(False, "batch", False))
    assert by_batch.batch.tolist() == [0] * 4 + [1] * 4 + [2] * 2


class Pairs(nn.Module):
    """A prediction for each pair of rows, as for graphs of two nodes."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5)(x, deterministic=not train)
        x = nn.BatchNorm()(x, use_running_average=not train)
        return nn.Dense(3)(x.reshape(len(x) // 2, 2, -1).mean(1))


def test_outputs_may_be_fewer_than_the_rows_of_inputs():
    x = jax.random.normal(jax.random.key(0), (6, 8, 4))
    batches = [(rows, np.arange(4) % 3) for rows in x]
    variables = Pairs().init(jax.random.key(1), x[0])
    found = gap.explain(Pairs(), variables, batches, batches, num_samples=3)
    [drawn] = [row for row in found.remedies.rows if row["remedy"].startswith("mean of")]
    mean = uncertainty.sample(Pairs(), variables, batches, num_samples=3).mean
    labels = np.concatenate([labels for _, labels in batches])
    assert drawn["accuracy"] == np.mean(mean.argmax(-1) == labels)
