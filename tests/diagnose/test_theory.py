"""Closed forms against each other, the papers' numbers, and Monte Carlo."""

import jax
import numpy as np
import pytest

from dropbn.diagnose import theory
from dropbn.errors import DropbnError
from dropbn.nn import laws, noise

RNG = np.random.default_rng(0)


def _multiplier(kind, amount, shape):
    layer = noise.KINDS[kind](amount)
    key = jax.random.key(int(RNG.integers(2**31)))
    return np.asarray(layer.apply({}, np.ones(shape, np.float32), deterministic=False, rng=key), np.float64)


NOISES = [
    ("dropout", 0.3, lambda rate: rate / (1 - rate)),
    ("gaussian", 0.3, lambda rate: rate / (1 - rate)),
    ("uout", 0.5, lambda beta: beta**2 / 3),
]


@pytest.mark.parametrize(("kind", "amount", "s2"), NOISES)
def test_directly_behind_a_noise(kind, amount, s2):
    """Var[x m] of a million samples; the spread of a variance is v sqrt((kurtosis - 1) / n), kurtosis < 9."""
    n, c, v = 1_000_000, 1.0, 2.0
    x = c + v**0.5 * RNG.normal(size=n)
    found = x.var() / (x * _multiplier(kind, amount, n)).var()
    assert found == pytest.approx(theory.direct(s2(amount), c, v), rel=5 * (8 / n) ** 0.5)
    assert noise.KINDS[kind](amount).s2 == pytest.approx(s2(amount))


def test_directly_behind_a_noise_by_the_papers():
    assert theory.direct(laws.Dropout(0.3).s2) == pytest.approx(0.7)  # Li, eq. 8 at c = 0: keep
    assert theory.direct(laws.Uout(0.1).s2) == pytest.approx(300 / 301)  # below eq. 15
    keep, c, v = 0.6, 0.7, 1.3
    wanted = v / ((c**2 + v) / keep - c**2)  # eq. 8 as it is printed
    assert theory.direct(laws.Dropout(1 - keep).s2, c, v) == pytest.approx(wanted)


@pytest.mark.parametrize(("kind", "amount", "s2"), NOISES)
def test_through_weights_in_three_ways(kind, amount, s2):
    """Li's eq. 14 as printed, the law of total variance, Monte Carlo; correlated inputs with a mean."""
    d, rho, c, v, n = 20, 0.3, 0.5, 1.5, 400_000
    weights = RNG.normal(0.1, 1.0, d)
    covariance = v * ((1 - rho) * np.eye(d) + rho)
    k = weights.sum() ** 2 / (weights**2).sum()
    ratio = theory.through_weights(s2(amount), k, rho, c, v)
    clean = weights @ covariance @ weights
    second = np.full(d, v + c**2)
    assert clean / (clean + theory.added_variance(s2(amount), weights, second)) == pytest.approx(ratio)
    assert theory.predropout(s2(amount), weights[:, None], np.full(d, c), covariance) == pytest.approx(ratio)
    if kind == "dropout":
        p = 1 - amount
        top = v * rho + v * (1 - rho) / k
        assert top / (v * rho + ((1 / p - 1) * c**2 + v * (1 / p - rho)) / k) == pytest.approx(ratio)
    x = RNG.multivariate_normal(np.full(d, c), covariance, n)
    noisy = (x * _multiplier(kind, amount, (n, d))) @ weights
    assert (x @ weights).var() / noisy.var() == pytest.approx(ratio, rel=5 * (4 / n) ** 0.5)


def test_weights_of_zero_sum_bring_nothing():
    assert theory.through_weights(0.5, 1.0, 0.3, 0.2, 1.0) == theory.direct(0.5, 0.2, 1.0)
    assert theory.through_weights(0.5, 50.0, 0.3) > theory.through_weights(0.5, 5.0, 0.3) > theory.direct(0.5)


def test_noise_before_and_after_weights():
    """Kim, Proposition 2: worse after a layer where sum_j sum_{k != j} w_j w_k E[x_j x_k] > 0, only there."""
    d, n, s2 = 6, 400_000, laws.Dropout(0.4).s2
    root = RNG.normal(size=(d, d))
    mean, covariance = RNG.normal(size=d), root @ root.T / d
    weights = RNG.normal(size=(d, 40))
    before = theory.predropout(s2, weights, mean, covariance)
    after = theory.postdropout(s2, weights, mean, covariance)
    second = covariance + np.outer(mean, mean)
    cross = np.einsum("io,ij,jo->o", weights, second - np.diag(np.diag(second)), weights)
    np.testing.assert_array_equal(after < before, cross > 0)
    assert 0 < (cross > 0).mean() < 1
    x = RNG.multivariate_normal(mean, covariance, n)
    y = x @ weights
    for ratio, noisy in (
        (before, (x * _multiplier("dropout", 0.4, x.shape)) @ weights),
        (after, y * _multiplier("dropout", 0.4, y.shape)),
    ):
        np.testing.assert_allclose(y.var(0) / noisy.var(0), ratio, rtol=5 * (8 / n) ** 0.5)


def test_branch_and_residual_are_kims():
    printed = {0.9: 0.860, 0.8: 0.732, 0.7: 0.614, 0.6: 0.506, 0.5: 0.405}  # the dashed lines of Fig. 3
    for keep, ratio in printed.items():
        assert theory.branch(keep) == pytest.approx(ratio, abs=5e-4)
    # One block in the limit of no skip, and of a skip that drowns it.
    assert theory.residual(0.7, 0.0, [1.3]) == pytest.approx(theory.branch(0.7))
    assert theory.residual(0.7, 1e9, [1.3]) == pytest.approx(1, abs=1e-6)
    assert theory.branch(0.7) < theory.residual(0.7, 1.0, [1.0, 0.5]) < 1


def test_branch_and_residual_by_monte_carlo():
    """z ~ N(0, gamma^2) through ReLU, dropout and many outputs of He weights (1 / n of them is the error)."""
    n, width, outputs, gamma, keep, var_x0 = 20_000, 200, 200, 1.4, 0.6, 2.0
    x = np.maximum(gamma * RNG.normal(size=(n, width)), 0)
    weights = RNG.normal(0, (2 / width) ** 0.5, (width, outputs))
    clean, noisy = x @ weights, (x * _multiplier("dropout", 1 - keep, x.shape)) @ weights
    skip = var_x0**0.5 * RNG.normal(size=(n, outputs))
    assert clean.var(0).mean() / noisy.var(0).mean() == pytest.approx(theory.branch(keep), rel=0.03)
    found = (skip + clean).var(0).mean() / (skip + noisy).var(0).mean()
    assert found == pytest.approx(theory.residual(keep, var_x0, [gamma**2]), rel=0.03)


def test_noise_before_and_after_pooling():
    """Kim, Proposition 5, for correlated positions behind a ReLU."""
    n, positions, s2 = 400_000, 9, laws.Dropout(0.3).s2
    x = np.maximum(RNG.normal(size=(n, 1)) + 0.5 * RNG.normal(size=(n, positions)), 0)
    pooled = x.mean(1)
    before = theory.before_pooling(s2, pooled.var(), np.square(x).mean(0))
    after = theory.after_pooling(s2, pooled.var(), pooled.mean())
    noisy = (x * _multiplier("dropout", 0.3, x.shape)).mean(1)
    assert noisy.var() == pytest.approx(before, rel=5 * (8 / n) ** 0.5)
    assert (pooled * _multiplier("dropout", 0.3, n)).var() == pytest.approx(after, rel=5 * (8 / n) ** 0.5)
    assert before < after


def test_the_largest_noise_for_a_ratio():
    for c, v, k, rho in ((0.0, 1.0, 1.0, 0.0), (0.7, 2.0, 12.0, 0.2)):
        s2 = theory.largest_s2(0.95, c, v, k, rho)
        assert theory.through_weights(s2, k, rho, c, v) == pytest.approx(0.95)
        assert laws.Dropout.of_s2(s2).s2 == pytest.approx(s2)
        ratio = theory.through_weights(0.3, k, rho, c, v)
        assert theory.largest_s2_from(0.95, 0.3, ratio) == pytest.approx(s2)
    assert laws.Dropout.of_s2(theory.largest_s2(0.95)).rate == pytest.approx(0.05)  # the ratio is keep
    assert theory.largest_s2_from(0.8, 0.1, 0.8) == pytest.approx(0.1)
    for refused in (lambda: theory.largest_s2(1.5), lambda: theory.largest_s2_from(0.9, 0.1, 0.0)):
        with pytest.raises(DropbnError, match="lies in"):
            refused()
    with pytest.raises(DropbnError, match="give a ratio below 1"):
        theory.largest_s2_from(0.9, 0.1, 1.0)


def test_weight_statistics_of_known_filters():
    ones, signs = np.ones((3, 3, 2, 4)), np.ones((8, 5))
    signs[::2] = -1
    random = RNG.normal(size=(5, 5, 4, 3000))
    params = {
        "a": {"kernel": ones, "bias": np.ones(4)},
        "b": {"c": {"kernel": signs}},
        "d": {"kernel": random},
    }
    rows = {row["layer"]: row for row in theory.weight_statistics(params).rows}
    assert set(rows) == {"a", "b/c", "d"}
    assert (rows["a"]["fan_in"], rows["a"]["cos2"], rows["a"]["d_cos2"]) == (18, 1.0, 18.0)
    assert rows["b/c"]["d_cos2"] == 0
    # d cos^2 theta of zero-mean weights is chi^2 with one degree of freedom: mean 1, variance 2.
    assert rows["d"]["d_cos2"] == pytest.approx(1, abs=5 * (2 / 3000) ** 0.5)
    with pytest.raises(DropbnError, match="no 'kernel'"):
        theory.weight_statistics({"a": {"scale": ones}})
