"""The laws against quadrature, their inverses, and the ends of their ranges."""

import itertools
import math

import jax
import numpy as np
import pytest

from configs import base
from dropbn.errors import DropbnError
from dropbn.nn import laws

AMOUNTS = [
    (laws.Dropout, 0.3),
    (laws.Dropout, 0.9),
    (laws.GaussianDropout, 0.3),
    (laws.GaussianDropout, 0.9),
    (laws.DropBlock, 0.3),
    (laws.Uout, 0.1),
    (laws.Uout, 1.0),
]


@pytest.mark.parametrize(("kind", "amount"), AMOUNTS)
def test_s2_is_the_second_moment_of_the_noise(kind, amount):
    law = kind(amount)
    if kind is laws.Uout:
        nodes, weights = np.polynomial.legendre.leggauss(5)
        second = weights @ np.square(1 + amount * nodes) / 2
    else:  # E[mask] / keep^2, and a normal of the same variance.
        second = 1 / law.keep if kind is not laws.GaussianDropout else 1 / (1 - amount)
    assert law.s2 == pytest.approx(second - 1, rel=1e-12)
    assert law.amount == amount


@pytest.mark.parametrize(("kind", "amount"), AMOUNTS)
def test_of_s2_is_the_inverse(kind, amount):
    s2 = kind(amount).s2
    assert kind.of_s2(s2).amount == pytest.approx(amount, rel=1e-12)
    assert laws.keep_of_s2(s2) == pytest.approx(1 - laws.Dropout.of_s2(s2).rate, rel=1e-12)
    traced = jax.jit(lambda s2: kind.of_s2(s2).amount)(s2)
    np.testing.assert_allclose(traced, amount, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda amount: kind(amount).s2)(amount), s2, rtol=1e-5)


@pytest.mark.parametrize(("kind", "amount"), AMOUNTS)
def test_the_affine_moments_of_a_factor(kind, amount):
    law, (c, v) = kind(amount), (np.array([1.5, -0.2]), np.array([0.5, 2.0]))
    assert law.affine == laws.Affine(1.0, 0.0, law.s2, 0.0, 0.0)
    np.testing.assert_allclose(law.affine.train_variance(c, v), v + law.s2 * (v + c**2), rtol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9])
def test_the_affine_moments_of_alpha_dropout_are_those_of_a_coin(rate):
    law, chances = laws.AlphaDropout(rate), np.array([rate, 1 - rate])
    d = np.array([0.0, 1.0])
    m, n = law.scale * d, law.scale * law.alpha * (1 - d) + law.offset
    means = chances @ m, chances @ n
    covariance = (chances * (m - means[0])) @ (m - means[0]), (chances * (m - means[0])) @ (n - means[1])
    found = law.affine
    np.testing.assert_allclose(found[:2], means, atol=1e-15)
    np.testing.assert_allclose(found[2:4], covariance, atol=1e-15)
    assert found.var_n == pytest.approx((chances * (n - means[1])) @ (n - means[1]), abs=1e-15)
    assert found.train_variance(0.0, 1.0) == pytest.approx(1, rel=1e-12)  # What a and b are chosen for.
    assert law.s2 is None and law.amount == rate
    traced = jax.jit(lambda rate: laws.AlphaDropout(rate).affine)(rate)
    np.testing.assert_allclose(traced, found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rate", "size", "side"), [(0.3, 5, 3), (0.6, 2, 4), (0.25, 3, 1)])
def test_the_moments_of_drop_block_are_those_of_all_sets_of_blocks(rate, size, side):
    """Along a line of `size` positions, every set of kept blocks with its probability."""
    law = laws.DropBlock(rate, side)
    blocks = np.array(list(itertools.product((0, 1), repeat=size + side - 1)))
    q = law.keep_of_block(1)
    chances = np.prod(np.where(blocks, q, 1 - q), axis=1)
    m = np.stack([blocks[:, at : at + side].all(1) for at in range(size)], axis=1) / law.keep
    np.testing.assert_allclose(chances @ m, 1, rtol=1e-12)
    covariance = (m - 1).T @ (chances[:, None] * (m - 1))
    wanted = [[law.covariance(i - j) for j in range(size)] for i in range(size)]
    np.testing.assert_allclose(covariance, wanted, atol=1e-12)
    assert law.s2 == pytest.approx(covariance[0, 0], rel=1e-12)
    assert law.covariance(0, 0) == pytest.approx(law.s2, rel=1e-12)
    assert law.covariance(0, side) == 0


def test_the_train_variance_of_an_affine_noise():
    """m and n as two mixed normals; c, v and all five moments are those of the sample, so nothing is random
    but the correlation of x with (m, n), which is taken out by pairing every x with every (m, n)."""
    x = np.random.default_rng(0).normal(0.7, 1.3, 300)
    m, other = np.random.default_rng(1).normal(size=(2, 200))
    m, n = 0.8 + 0.5 * m, 0.3 - 0.4 * m + 0.6 * other
    (var_m, cov), (_, var_n) = np.cov(m, n, ddof=0)
    affine = laws.Affine(m.mean(), n.mean(), var_m, cov, var_n)
    y = m * x[:, None] + n
    assert affine.train_variance(x.mean(), x.var()) == pytest.approx(y.var(), rel=1e-12)


def test_the_ends_of_the_range():
    for one in (1, 1.0, np.float32(1)):
        assert laws.Dropout(one).s2 == math.inf
    assert laws.Dropout.of_s2(math.inf).rate == 1
    assert laws.Uout.of_s2(laws.Uout(1).s2).beta == 1
    for kind in (laws.Dropout, laws.GaussianDropout, laws.Uout):
        assert kind(0).s2 == kind.of_s2(0.0).amount == 0
    with pytest.raises(DropbnError, match=r"GaussianDropout: rate must lie in \[0, 1\), got 1"):
        laws.GaussianDropout.of_s2(math.inf)
    with pytest.raises(DropbnError, match=r"Uout: s2 must lie in \[0, 1/3\], .* got 0.5"):
        laws.Uout.of_s2(0.5)
    for wrong in (-0.1, math.nan):  # Not a complex beta.
        with pytest.raises(DropbnError, match="Uout: s2 must lie in"):
            laws.Uout.of_s2(wrong)
    with pytest.raises(DropbnError, match=r"AlphaDropout: rate must lie in \[0, 1\), got 1"):
        laws.AlphaDropout(1)
    for wrong in ("x", None, []):  # A traced amount is an array.
        with pytest.raises(DropbnError, match=r"Dropout: rate must lie in \[0, 1\], got ('x'|None|\[\])"):
            laws.Dropout(wrong)
    assert laws.DropBlock(1.0).covariance(1, 1) == math.inf
    assert laws.Uout.of_s2(min(0.5, laws.Uout(1).s2)).beta == 1.0


def test_the_law_of_a_config():
    config = base.get_config().model.noise
    for kind, law in (("dropout", laws.Dropout(0.25)), ("gaussian", laws.GaussianDropout(0.25))):
        config.kind, config.rate = kind, 0.25
        assert laws.of_config(config) == law
    for kind in ("spatial", "stochastic_depth"):
        config.kind = kind
        assert laws.of_config(config) == laws.Dropout(0.25)
    config.kind = "alpha"
    assert laws.of_config(config) == laws.AlphaDropout(0.25)
    config.kind = "dropblock"
    assert laws.of_config(config) == laws.DropBlock(0.25, 7)
    config.block_size = 3
    assert laws.of_config(config) == laws.DropBlock(0.25, 3)
    config.block_size = -1
    with pytest.raises(DropbnError, match="block_size must be 1 or more, got -1"):
        laws.of_config(config)
    config.block_size = 0
    config.kind, config.beta = "uout", 0.5
    assert laws.of_config(config) == laws.Uout(0.5)
    config.kind = "droput"
    with pytest.raises(DropbnError, match="Did you mean 'dropout'"):
        laws.of_config(config)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [("block_size", 3, "spatial"), ("scale_at", "test", "gaussian"), ("restore", "exact", "alpha")],
)
def test_a_field_of_another_kind_is_refused(field, value, kind):
    config = base.get_config().model.noise
    config.kind, config.rate, config[field] = kind, 0.2, value
    owner = {"block_size": "dropblock"}.get(field, "dropout")
    with pytest.raises(DropbnError, match=f"{kind}' does not use {field}={value!r}: .* take kind='{owner}'"):
        laws.of_config(config)
    config.kind = owner
    assert laws.of_config(config).amount == 0.2
