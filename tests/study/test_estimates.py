"""Estimates against hand calculation and explicit sums, and their coverage in repeated samples."""

import itertools
import math
import statistics

import numpy as np
import pytest

from dropbn.errors import DropbnError
from dropbn.study import estimates, verdicts


@pytest.mark.parametrize(
    ("values", "level", "mean", "half_width"),
    [
        # t of 4 degrees of freedom 2.776445, s = sqrt(10 / 4): 2.776445 sqrt(2.5 / 5).
        ([1, 2, 3, 4, 5], 0.95, 3, 1.963243),
        # 1 degree: 12.706205, s / sqrt(2) = 1.
        ([0, 2], 0.95, 1, 12.706205),
        # 2 degrees at 99 %: 9.924843, s = 1.
        ([3, 1, 2], 0.99, 2, 9.924843 / 3**0.5),
        ([7, 7, 7], 0.95, 7, 0),
    ],
)
def test_intervals_by_hand(values, level, mean, half_width):
    assert estimates.interval(values, level) == pytest.approx((mean, half_width), abs=1e-6)


def test_one_value_has_no_interval():
    assert estimates.interval([0.25]) == (0.25, None)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """4000 samples of 5: the share is known to 5 sqrt(0.95 0.05 / 4000) = 0.017.

    The normal's 1.96 in place of t's 2.78 would hold it in 88 %.
    """
    samples = np.random.default_rng(0).normal(0.3, 2, (4000, 5))
    intervals = [estimates.interval(sample) for sample in samples]
    holds = np.mean([abs(mean - 0.3) <= half_width for mean, half_width in intervals])
    assert holds == pytest.approx(0.95, abs=5 * (0.95 * 0.05 / 4000) ** 0.5)


def test_seeds_and_images_against_explicit_sums():
    """The analysis of variance, cell by cell; the quantile of Student's t by integrating its density."""
    x = np.random.default_rng(3).choice([-100.0, 0, 0, 100], (4, 7))
    x += [[0], [50], [90], [-20]]  # Seeds differ,
    x[:, :2] += 150  # and images.
    (seeds, images), grand = x.shape, x.mean()
    ms_seeds = images * sum((x[s].mean() - grand) ** 2 for s in range(seeds)) / (seeds - 1)
    ms_images = seeds * sum((x[:, i].mean() - grand) ** 2 for i in range(images)) / (images - 1)
    rest = [
        x[s, i] - x[s].mean() - x[:, i].mean() + grand
        for s, i in itertools.product(range(seeds), range(images))
    ]
    ms_rest = sum(r**2 for r in rest) / ((seeds - 1) * (images - 1))
    found = estimates.estimate(x)
    assert (found.mean, found.seeds, found.images) == (pytest.approx(grand), 4, 7)
    shares = (found.of_seeds, found.of_images, found.of_rest)
    assert shares == pytest.approx([ms / 28 for ms in (ms_seeds, ms_images, ms_rest)])
    means = [x[:, i].mean() - grand for i in range(images)]
    kurtosis = images * sum(m**4 for m in means) / sum(m**2 for m in means) ** 2
    f_images = 2 / (2 / 6 + (kurtosis - 3) / 7)
    total = ms_seeds + ms_images - ms_rest
    freedom = total**2 / (ms_seeds**2 / 3 + ms_images**2 / f_images + ms_rest**2 / (3 * f_images))
    assert total > max(ms_seeds, ms_images)
    assert found.variance() == pytest.approx((total / 28, freedom))
    mean, half = found.interval()
    assert mean == pytest.approx(grand)
    t = np.linspace(0, half / (total / 28) ** 0.5, 20001)
    density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    rate = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    assert rate * np.trapezoid(density, t) == pytest.approx(0.475, abs=1e-7)
    assert found.p(grand - half) == pytest.approx(0.05) and found.p(grand) == 1


def test_the_variance_over_seeds_and_images_is_unbiased():
    """V_s / S + V_i / I + V_r / (S I) = 0.5 + 0.25 + 0.05 in 4000 samples, known to five standard errors."""
    rng = np.random.default_rng(4)
    drawn = [
        estimates.estimate(
            rng.normal(0, 2**0.5, (4, 1)) + rng.normal(0, 5**0.5, 20) + rng.normal(0, 2, (4, 20))
        )
        for _ in range(4000)
    ]
    totals = np.array([one.of_seeds + one.of_images - one.of_rest for one in drawn])
    assert totals.mean() == pytest.approx(0.8, abs=5 * totals.std() / 4000**0.5)
    freedoms = np.array([one.image_freedom for one in drawn])  # of normal images about 19
    assert np.median(freedoms) == pytest.approx(19, rel=0.3)


def test_a_share_below_the_residual_leaves_the_other_alone():
    x = np.array([[100.0, 0, 0, 0, 0, 100], [100, 0, 0, 0, 100, 0], [100, 0, 0, 100, 0, 0]])
    found = estimates.estimate(x)  # All seeds are equally accurate.
    assert found.of_seeds == pytest.approx(0) and found.of_seeds < found.of_rest
    assert found.variance() == (found.of_images, found.image_freedom)
    turned = estimates.estimate(x.T)
    assert turned.variance() == (turned.of_seeds, 5) and turned.of_seeds == pytest.approx(found.of_images)


@pytest.mark.parametrize(
    ("x", "p"),
    [
        (np.zeros((5, 8)), 1),
        (np.full((5, 8), 100.0), 0.0625),  # 2^(1 - 5), as of five equal differences
        (np.full((1, 8), 100.0), None),
        (np.full((3, 8), np.nan), None),
    ],
)
def test_differences_without_a_spread(x, p):
    assert estimates.estimate(x).p() == p and verdicts.decide(estimates.estimate(x), 1) == "undecided"
    assert estimates.estimate(x).needed(1.0) == (None, None)


# accuracies of both cells, standard deviations of images, of images in a cell, of seeds, of the rest
DESIGNS = {
    "digits": ((0.987, 0.978), 2, 0.6, 0.1, 0.4),  # as no dropout and (a) on digits
    "apart": ((0.90, 0.88), 2, 0.5, 0.1, 1),
    "equal": ((0.90, 0.90), 2, 0.5, 0.1, 1),
    "cifar": ((0.62, 0.48), 1.5, 0.6, 0.15, 1),
    "rare": ((0.989, 0.989), 3, 0.3, 0.05, 0.6),
}


def _covered(design, seeds, images, draws):
    """The share of draws in which 95 % intervals hold the truth: (over seeds and images, over seeds alone).

    An image is right where the sum of a constant and of normal effects is above 0; the constant follows from
    the accuracy.
    """
    accuracies, image, of_cell, of_seed, rest = DESIGNS[design]
    size, (more, less) = np.sqrt(image**2 + of_cell**2 + of_seed**2 + rest**2), accuracies
    rng, holds = np.random.default_rng(0), []

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    for _ in range(draws):
        of_image = image * normal(images)
        right = [
            of_image + of_cell * normal(images) + of_seed * normal(seeds, 1) + rest * normal(seeds, images)
            > -statistics.NormalDist().inv_cdf(accuracy) * size
            for accuracy in accuracies
        ]
        x = np.subtract(*right, dtype=np.float32)
        found = [estimates.interval(values) for values in (x, x.mean(1))]
        holds.append([abs(mean - (more - less)) <= half for mean, half in found])
    return np.mean(holds, 0)


def test_intervals_over_seeds_and_images_hold_the_truth():
    """A design like no dropout and (a) 0.5 on 360 digits; 2000 draws give a share of 95 % to within 0.5 %."""
    both, seeds_alone = _covered("digits", 5, 360, 2000)
    assert 0.93 <= both <= 0.97 and seeds_alone < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize(
    ("design", "images"),
    [("digits", 360), ("apart", 360), ("apart", 800), ("equal", 800), ("digits", 800), ("cifar", 10_000)],
)
def test_intervals_of_many_designs_hold_the_truth(design, images, seeds):
    """2000 draws give a share of 95 % to within 0.5 %."""
    both, _ = _covered(design, seeds, images, 2000)
    assert 0.93 <= both <= 0.97, both


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20])
def test_intervals_are_wide_where_equal_cells_differ_on_few_images(seeds):
    both, _ = _covered("rare", seeds, 360, 2000)
    assert both > 0.97


@pytest.mark.parametrize(("spread", "seeds"), [(0.3, 3), (1, 10), (3, 73)])
def test_seeds_needed_by_simulation(spread, seeds):
    """For a difference of 1 at a power of 80 %, of 20,000 samples: known to 5 sqrt(0.16 / 20,000) = 1.4 %."""
    seen = estimates.estimate(spread * np.array([-1, 0, 1]))
    assert seen.needed(1.0) == (seeds, None)

    def told(number):
        samples = np.random.default_rng(6).normal(1, spread, (20_000, number))
        t = samples.mean(1) / samples.std(1, ddof=1) * number**0.5
        return np.mean(t > _T975[number - 1])

    assert told(seeds) > 0.8 - 0.014 and told(seeds - 1) < 0.8 + 0.014


# 97.5 % of Student's t by degrees of freedom, from tables.
_T975 = {1: 12.7062, 2: 4.30265, 8: 2.30600, 9: 2.26216, 71: 1.99394, 72: 1.99346}


def test_seeds_needed_on_these_images_by_simulation():
    """Normal effects of known size: 4000 samples give 80 % to within 5 sqrt(0.16 / 4000) = 3.2 %."""
    variances = {"of_seeds": 0.5, "of_images": 0.04, "of_rest": 0.01}
    seen = estimates.Estimate(0.0, 5, 60, **variances, image_freedom=59)
    seeds, images = seen.needed(1.0)
    assert images is None and 5 < seeds < 40
    rng, told = np.random.default_rng(7), 0
    for _ in range(4000):
        x = 1 + rng.normal(0, (5 * 0.49) ** 0.5, (seeds, 1)) + rng.normal(0, (60 * 0.03) ** 0.5, 60)
        told += estimates.estimate(x + rng.normal(0, (300 * 0.01) ** 0.5, (seeds, 60))).p() <= 0.05
    assert told / 4000 == pytest.approx(0.8, abs=0.032)


def test_images_needed_where_their_share_is_too_large():
    """With infinitely many seeds: I V (z_0.975 + z_0.8)^2 / difference^2 with V = 0.3, that of 360 images."""
    seen = estimates.Estimate(0.0, 5, 360, 0.2, 0.32, 0.02, 359)
    seeds, images = seen.needed(1.0)
    assert seeds is None and images == pytest.approx(360 * 0.3 * (1.959964 + 0.841621) ** 2, rel=0.003)
    assert seen.at(10**8, images).power(1.0) >= 0.8 > seen.at(10**8, images - 1).power(1.0)
    assert seen.needed(1e-9) == (None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimates.interval([]), "needs one value for each seed"),
        (lambda: estimates.interval([[1], [0]]), "at least two images"),
        (lambda: estimates.interval([1, 2], 95), "level of an interval is between 0 and 1"),
    ],
    ids=["no values", "one image", "level"],
)
def test_requests_that_are_refused(call, message):
    with pytest.raises(DropbnError, match=message):
        call()
