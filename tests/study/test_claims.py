"""Intervals and verdicts against hand calculation and against their promise in repeated samples."""

import itertools
import math
import statistics

import numpy as np
import pytest

from dropbn.errors import DropbnError
from dropbn.study import claims, estimates, finished_runs
from dropbn.study.claims import Claim
from dropbn.study.finished_runs import Cell
from dropbn.study.numbers import largest_shift


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


def _decide(differences, sign, level=0.95):
    return claims.decide(estimates.estimate(differences), sign, level=level)


def test_without_a_difference_few_claims_are_decided():
    """Of 4000 samples about 0, 2.5 % each way, to 5 sqrt(0.025 0.975 / 4000) = 0.0123."""
    samples = np.random.default_rng(1).normal(0, 1, (4000, 3))
    verdicts = [_decide(sample, 1) for sample in samples]
    for verdict in ("confirmed", "refuted"):
        assert np.mean([v == verdict for v in verdicts]) == pytest.approx(0.025, abs=0.0123)


@pytest.mark.parametrize(
    ("differences", "side"),
    [
        ([1, 2, 3, 4, 5], 1),  # 3 +- 1.96
        ([-1, -2, -3, -4, -5], -1),
        ([-1, 1, 2, 3, 4], 0),  # 1.8 +- 2.776445 sqrt(3.7 / 5) = 2.39
        ([1, 2], 0),  # 1.5 +- 6.35
        ([9, 9.1], 1),  # 9.05 +- 0.64
        ([5], 0),
        ([1, 2, float("nan")], 0),
        # Equal differences: 2^(1 - n) is 0.0625 for five and 0.03125 for six.
        ([0.5] * 2, 0),
        ([0.5] * 5, 0),
        ([0.5] * 6, 1),
        ([-0.5] * 6, -1),
        ([0.1 + 0.2, 0.3, 0.3, 0.3, 0.3], 0),  # equal but for rounding
        ([0.0] * 10, 0),
    ],
)
def test_verdicts_by_hand(differences, side):
    words = {1: ("refuted", "undecided", "confirmed"), 0: ("less", "undecided", "more")}
    for sign, verdicts in words.items():
        assert _decide(differences, sign) == verdicts[1 + side]
    assert _decide(differences, -1) == words[1][1 - side]


def test_a_higher_level_asks_for_more():
    # 3 +- 4.604095 sqrt(2.5 / 5) = 3.26 at 99 %; equal ones need 2^(1 - n) <= 0.01, eight seeds.
    assert _decide([1, 2, 3, 4, 5], 1, 0.99) == "undecided"
    assert _decide([1] * 7, 1, 0.99) == "undecided"
    assert _decide([1] * 8, 1, 0.99) == "confirmed"


def _cell(arg, **columns):
    """A cell with members 0, 1, 2, ... from lists of what summaries hold; None where a member lacks it."""
    number = max(map(len, columns.values()), default=0)
    members = []
    for seed in range(number):
        summary = {key: values[seed] for key, values in columns.items() if values[seed] is not None}
        records = [{"train/loss": 9.0, "step": 1}, {"train/loss": summary.pop("loss", 1.0), "step": 2}]
        members.append(finished_runs.member(seed, records, summary))
    return Cell(arg, {}, None, members)


def _judge(claim, *cells):
    (row,) = claims.judge([claim], cells)
    return row


B_ABOVE_A = Claim("b above a", "b", "a", "accuracy", "a paper", 2.57)


def test_accuracies_are_compared_by_seed_in_points():
    """0.91, 0.92, 0.96 less 0.90, 0.90, 0.93 is 1, 2, 3 points: 2 +- 4.302653 / sqrt(3)."""
    row = _judge(
        B_ABOVE_A,
        _cell("a", accuracy=[0.90, 0.90, 0.93]),
        _cell("b", accuracy=[0.91, 0.92, 0.96]),
        _cell("c", accuracy=[0.1]),
    )
    assert row == {
        "claim": "b above a",
        "source": "a paper",
        "metric": "accuracy",
        "paper": 2.57,
        "difference": pytest.approx(2),
        "interval": pytest.approx(4.302653 / 3**0.5, abs=1e-6),
        "over": "seeds, images unknown",
        "seeds": 3,
        "se_seeds": pytest.approx(1 / 3**0.5),
        "se_images": None,
        # t = 2 sqrt(3) of 2 degrees of freedom, whose two-sided p is 1 - t / sqrt(2 + t^2).
        "p": pytest.approx(1 - 12**0.5 / 14**0.5),
        "p_adjusted": pytest.approx(1 - 12**0.5 / 14**0.5),
        "p_fdr": pytest.approx(1 - 12**0.5 / 14**0.5),
        "verdict": "undecided",
        "seeds_needed": 4,
        "images_needed": None,
    }


def test_only_seeds_of_both_cells_count():
    """The members are paired by seed and not by rank: seeds 1 and 3 have 5 and 5.1 points."""
    row = _judge(
        B_ABOVE_A,
        _cell("a", accuracy=[None, 0.5, 0.9, 0.8]),
        _cell("b", accuracy=[0.1, 0.55, None, 0.851]),
    )
    assert row["seeds"] == 2 and row["difference"] == pytest.approx(5.05)
    # s = 0.1 / sqrt(2), so 12.706205 * 0.05.
    assert row["interval"] == pytest.approx(0.63531, abs=1e-5) and row["verdict"] == "confirmed"
    late = Cell("b", {}, None, [finished_runs.member(7, [], {"accuracy": 0.5})])
    assert _judge(B_ABOVE_A, _cell("a", accuracy=[0.5, 0.5]), late)["verdict"] == "not run"


def test_one_seed_decides_nothing():
    row = _judge(B_ABOVE_A, _cell("a", accuracy=[0.1]), _cell("b", accuracy=[0.9]))
    assert (row["difference"], row["interval"], row["seeds"]) == (pytest.approx(80), None, 1)
    assert row["verdict"] == "undecided"


LOSSES = [0.9, 0.3, 0.12, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("loss_after_a_tenth", 0.9),  # The first epoch ends at 10 of 100 steps.
        ("loss_after_a_third", 0.08),  # 33.3 steps are reached in the fourth.
        ("steps_to_loss_0.1", 35),  # Half-way from 0.12 to 0.08.
        ("objective_after_a_tenth", 0.9 + 0.2),
        ("objective_after_a_third", 0.08 + 0.2),
        ("steps_to_objective_0.6", 10 + 10 * (1.1 - 0.6) / (1.1 - 0.5)),
    ],
)
def test_speed_by_hand(metric, value):
    """Losses of 0.9, 0.3, 0.12, 0.08, ... in ten epochs of 10 steps, and a penalty of 0.2."""
    records = [
        {"step": 10 * epoch, "train/loss": loss, "train/penalty": 0.2} for epoch, loss in enumerate(LOSSES, 1)
    ]
    assert finished_runs.member(0, records, {}).numbers[metric] == pytest.approx(value)
    assert metric not in finished_runs.member(0, [], {}).numbers


def test_a_loss_that_is_never_or_at_once_reached():
    # The third rises before it falls: half-way from the least, 0.2, to 0.
    for losses, steps in (([0.5, 0.4], 14), ([0.05, 0.2], 7), ([0.2, 0.9, 0.0], 17.5)):
        records = [{"step": 7 * epoch, "train/loss": loss} for epoch, loss in enumerate(losses, 1)]
        assert finished_runs.member(0, records, {}).numbers["steps_to_loss_0.1"] == pytest.approx(steps)


@pytest.mark.parametrize(
    "cells",
    [
        (),
        (_cell("a", accuracy=[0.1, 0.2]),),
        (_cell("a", accuracy=[0.1, 0.2]), _cell("b")),
        (_cell("a", accuracy=[0.1, 0.2]), _cell("b", loss=[0.1, 0.2])),
    ],
    ids=["no cells", "no cell", "no member", "no such number"],
)
def test_what_was_not_run(cells):
    row = _judge(B_ABOVE_A, *cells)
    assert row["verdict"] == "not run" and row["seeds"] == 0
    assert row["difference"] is None and row["interval"] is None and row["paper"] == 2.57


def test_a_question_is_answered_by_more_or_less():
    cells = _cell("a", accuracy=[0.5, 0.5, 0.5]), _cell("b", accuracy=[0.60, 0.61, 0.62])
    question = Claim("a against b", "a", "b", "accuracy", "open question", sign=0)
    assert _judge(question, *cells)["verdict"] == "less"
    assert _judge(question._replace(more="b", less="a"), *cells)["verdict"] == "more"
    assert _judge(question._replace(less="a"), *cells)["verdict"] == "undecided"
    assert _judge(question._replace(sign=1), *cells)["verdict"] == "refuted"


def test_one_cell_with_two_metrics():
    cell = _cell(
        "a",
        accuracy=[0.5, 0.6, 0.7, 0.9],
        recalibrated=[{"li2018_torch": share, "li2018": 0.1} for share in (0.61, 0.70, 0.82)]
        + [{"li2018": 0.1}],
    )
    claim = Claim("adjusted", "a", "a", "adjusted_accuracy", "", 2.0, less_metric="accuracy")
    row = _judge(claim, cell)
    assert row["difference"] == pytest.approx(11) and row["verdict"] == "confirmed"  # 11, 10, 12


def test_every_metric_is_read():
    summary = {
        "accuracy": 0.5,
        "loss": 0.75,
        "recalibrated": {"li2018_torch": 0.6, "li2018": 0.3, "dropout_off": 0.7},
        "shift": [{"ratio": 0.8}, {"ratio": 1.5}, {"ratio": 0.4}],
        "train_accuracy": 0.9,
        "train_accuracy_test_mode": 0.85,
    }
    records = [
        {"step": 1, "train/loss": 3.0, "train/penalty": 2.0},
        {"step": 2, "train/loss": 0.25, "train/penalty": 0.125},
    ]
    full = finished_runs.member(0, records, summary)
    expected = {
        "accuracy": 50,
        "test_loss": 0.75,
        "adjusted_accuracy": 60,
        "literally_adjusted_accuracy": 30,
        "recalibrated_accuracy": 70,
        "shift": 2.5,
        "train_gap": 5,
        "loss": 0.25,
        "penalty": 0.125,
        "loss_after_a_tenth": 3,
        "loss_after_a_third": 3,
        "steps_to_loss_0.1": 2,
        "objective_after_a_tenth": 5,
        "objective_after_a_third": 5,
        "steps_to_objective_0.6": 1 + (5 - 0.6) / (5 - 0.375),
    }
    assert {name: full.numbers[name] for name in claims.METRICS} == pytest.approx(expected)
    without = finished_runs.member(0, [{"step": 1}], {"shift": [], "train_accuracy": 0.9})
    assert without.numbers == {"train_accuracy": 90} and finished_runs.member(0, [], {}).numbers == {}


def test_the_largest_shift_is_on_either_side_of_one():
    assert largest_shift([{"ratio": 0.5}, {"ratio": 1.2}]) == 2
    assert largest_shift([{"ratio": 0.9}, {"ratio": 1.2}]) == 1.2
    assert largest_shift([]) is None and largest_shift(None) is None


# Over seeds and images.


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


def _right(arg, *correct, seeds=None, statistics="running"):
    """A cell whose members have these images right, as 0 and 1."""
    key = {"running": "accuracy", "li2018_torch": "recalibrated"}[statistics]
    members = []
    for seed, right in zip(seeds or range(len(correct)), correct, strict=True):
        share = float(np.mean(right))
        summary = {key: share if key == "accuracy" else {statistics: share}}
        summary["correct"] = {statistics: finished_runs.pack(np.array(right, bool))}
        members.append(finished_runs.member(seed, [], summary))
    return Cell(arg, {}, None, members)


def test_accuracies_are_compared_by_seed_and_image():
    a = _right("a", [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1], seeds=(0, 1, 5))
    b = _right("b", [1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], seeds=(0, 1, 2))
    expected = [[0, 100, 100, -100], [100, 0, 100, 0]]
    np.testing.assert_array_equal(claims.paired(b, a, "accuracy"), expected)
    row = _judge(B_ABOVE_A, a, b)
    mean, half = estimates.interval(expected)
    assert (row["difference"], row["interval"], row["seeds"]) == (37.5, half, 2) and mean == 37.5
    assert row["over"] == "seeds and images"
    # Seeds have 25 and 50 points; images 50, 50, 100, -50, whose variance is 11875 / 3.
    assert row["se_seeds"] == pytest.approx(12.5) and row["se_images"] == pytest.approx((11875 / 12) ** 0.5)
    adjusted = _right("b", [0, 1, 1, 0], [1, 1, 1, 1], statistics="li2018_torch")
    np.testing.assert_array_equal(
        claims.paired(adjusted, a, "adjusted_accuracy", "accuracy"),
        [[-100, 100, 100, -100], [100, 100, 100, 0]],
    )


@pytest.mark.parametrize(
    "other",
    [
        _cell("b", accuracy=[0.75, 0.75]),
        _right("b", [1, 1, 1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1, 0]),
        _right("b", [1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1, 0]),
    ],
    ids=["no images", "other images", "a seed with other images"],
)
def test_without_common_images_accuracies_are_compared_over_seeds(other):
    row = _judge(B_ABOVE_A, _right("a", [1, 0, 1, 0], [0, 0, 1, 0]), other)
    assert row["over"] == "seeds, images unknown" and row["se_images"] is None
    assert row["difference"] == 37.5 and row["interval"] == pytest.approx(12.706205 * 12.5)
    loss = _judge(B_ABOVE_A._replace(metric="loss"), _cell("a", loss=[1, 2]), _cell("b", loss=[1, 3]))
    assert loss["over"] == "seeds"


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
    assert estimates.estimate(x).p() == p and _decide(x, 1) == "undecided"
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
    """In which share of draws 95 % intervals hold the truth: (over seeds and images, over seeds).

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
    """As no dropout and (a) 0.5 on 360 digits; 2000 draws know a share of 95 % to 0.5 %."""
    both, seeds_alone = _covered("digits", 5, 360, 2000)
    assert 0.93 <= both <= 0.97 and seeds_alone < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize(
    ("design", "images"),
    [("digits", 360), ("apart", 360), ("apart", 800), ("equal", 800), ("digits", 800), ("cifar", 10_000)],
)
def test_intervals_of_many_designs_hold_the_truth(design, images, seeds):
    """2000 draws know a share of 95 % to 0.5 %."""
    both, _ = _covered(design, seeds, images, 2000)
    assert 0.93 <= both <= 0.97, both


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20])
def test_intervals_are_wide_where_equal_cells_differ_on_few_images(seeds):
    both, _ = _covered("rare", seeds, 360, 2000)
    assert both > 0.97


# Several claims.


def _losses(arg, *values):
    return _cell(arg, loss=list(values))


def _above(more, less, **others):
    return Claim(f"{more} above {less}", more, less, "loss", "a paper")._replace(**others)


def test_p_is_adjusted_for_the_claims_with_a_sign_that_were_run():
    cells = [
        _losses("zero", 0, 0, 0),
        _losses("same", 0.00, 0.01, -0.01),
        _losses("b", 1, 1.1, 0.9),
        _losses("c", 1, 1.6, 0.4),
        _losses("twin", 1, 1.6, 0.4),
        _losses("d", 1, 5, -3),
        _losses("one", 7),
    ]
    claimed = [_above(more, "zero") for more in ("b", "c", "twin", "d", "one", "nothing")]
    claimed += [_above("b", "same", sign=0), _above("zero", "c")]
    rows = claims.judge(claimed, cells)
    b, c, twin, d, one, nothing, question, turned = rows
    # t is 1 / (s / sqrt(3)) with s = 0.1, 0.6 and 4; of 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    p = [1 - t / (2 + t * t) ** 0.5 for t in (3**0.5 / s for s in (0.1, 0.6, 4))]
    assert [row["p"] for row in (b, c, d)] == pytest.approx(p)
    # Of three tests: twin is c by another name, and zero above c is c above zero turned round.
    assert [row["p_adjusted"] for row in (b, c, d)] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert [row["p_fdr"] for row in (b, c, d)] == pytest.approx([3 * p[0], 1.5 * p[1], p[2]])
    for row in (twin, turned):
        assert (row["p"], row["p_adjusted"], row["p_fdr"]) == (c["p"], c["p_adjusted"], c["p_fdr"])
    assert one["p"] is one["p_adjusted"] is nothing["p"] is nothing["p_adjusted"] is None
    assert question["p"] < 0.05 and question["p_adjusted"] is None and question["verdict"] == "more"
    assert [row["verdict"] for row in (b, c, d)] == ["confirmed", "undecided", "undecided"]
    assert c["p"] > 0.05 and 0.03 > b["p_adjusted"] > 0.005


def test_holm_takes_the_largest_so_far():
    """p of 0.01, 0.04, 0.03, 0.005, by hand: 3 * 0.01, 2 * 0.03 twice, 4 * 0.005."""
    holm, fdr = zip(*claims._adjusted(dict(enumerate([0.01, 0.04, 0.03, 0.005]))).values(), strict=True)
    assert holm == pytest.approx((0.03, 0.06, 0.06, 0.02)) and fdr == pytest.approx((0.02, 0.04, 0.04, 0.02))


def test_of_many_true_zeros_seldom_any_is_decided():
    """In 300 tables of 10 claims; 5 % are known to 5 sqrt(0.05 0.95 / 300) = 6.3 %; else it would be 40 %."""
    rng = np.random.default_rng(5)
    claimed = [_above(f"more{i}", f"less{i}") for i in range(10)]
    tables = []
    for _ in range(300):
        cells = [_losses(f"{side}{i}", *rng.normal(size=4)) for side in ("more", "less") for i in range(10)]
        tables.append({row["verdict"] for row in claims.judge(claimed, cells)})
    assert 0.003 < np.mean([found != {"undecided"} for found in tables]) < 0.05 + 0.063


@pytest.mark.parametrize(
    ("differences", "paper", "verdict"),
    [
        ([1, 2, 3, 4, 5], 3.5, "confirmed"),  # 3 +- 1.96
        ([1, 2, 3, 4, 5], 5.0, "confirmed, smaller here"),
        ([1, 2, 3, 4, 5], 1.0, "confirmed"),  # larger here
        ([-1, 1, 2, 3, 4], 4.0, "undecided"),  # 1.8 +- 2.39
        ([-1, 1, 2, 3, 4], 4.2, "smaller here"),
        ([-1, 1, 2, 3, 4], None, "undecided"),
        ([-1, -2, -3, -4, -5], 5.0, "refuted"),
        ([0.0] * 5, 5.0, "undecided"),  # Five equal differences have p = 0.0625.
        ([0.0] * 6, 5.0, "smaller here"),
        ([0.5], 5.0, "undecided"),
    ],
)
def test_smaller_than_in_the_paper(differences, paper, verdict):
    found = estimates.estimate(differences)
    assert claims.decide(found, 1, paper) == verdict
    turned = estimates.estimate([-d for d in differences])
    assert claims.decide(turned, -1, None if paper is None else -paper) == verdict


def test_an_adjusted_p_takes_the_sign_and_leaves_the_size():
    found = estimates.estimate([1, 2, 3, 4, 5])  # p = 0.013
    assert claims.decide(found, 1, 4.0, p=0.06) == "undecided"
    assert claims.decide(found, 1, 5.0, p=0.06) == "smaller here"


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
    """Normal effects of known size: 4000 samples know 80 % to 5 sqrt(0.16 / 4000) = 3.2 %."""
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
    """With seeds without end: I V (z_0.975 + z_0.8)^2 / difference^2, V = 0.3 being that of 360 images."""
    seen = estimates.Estimate(0.0, 5, 360, 0.2, 0.32, 0.02, 359)
    seeds, images = seen.needed(1.0)
    assert seeds is None and images == pytest.approx(360 * 0.3 * (1.959964 + 0.841621) ** 2, rel=0.003)
    assert seen.at(10**8, images).power(1.0) >= 0.8 > seen.at(10**8, images - 1).power(1.0)
    assert seen.needed(1e-9) == (None, None)


def test_what_is_needed_is_said_of_what_is_undecided():
    rows = claims.judge(
        [
            _above("b", "a", paper=paper, sign=sign)
            for paper, sign in ((2.0, 1), (9.0, 1), (None, 1), (2.0, 0))
        ],
        [_losses("a", 0, 0, 0), _losses("b", -1, 0, 1)],
    )
    assert [row["verdict"] for row in rows] == ["undecided", "smaller here", "undecided", "undecided"]
    assert [row["seeds_needed"] for row in rows] == [5, None, None, None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimates.interval([]), "wants a value a seed"),
        (lambda: estimates.interval([[1], [0]]), "of two images or more"),
        (lambda: estimates.interval([1, 2], 95), "level of an interval is between 0 and 1"),
        (lambda: _decide([1, 2], 2), "sign of a claim is 1, -1 or 0"),
        (lambda: claims.judge([B_ABOVE_A._replace(metric="acuracy")], []), "Did you mean 'accuracy'"),
    ],
    ids=["no values", "one image", "level", "sign", "metric"],
)
def test_requests_that_are_refused(call, message):
    with pytest.raises(DropbnError, match=message):
        call()
