"""Intervals and verdicts against hand calculation and against their promise in repeated samples."""

import numpy as np
import pytest

from dropbn import claims, evidence
from dropbn.claims import Claim
from dropbn.errors import DropbnError
from dropbn.evidence import Cell, largest_shift


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
    assert claims.interval(values, level) == pytest.approx((mean, half_width), abs=1e-6)


def test_one_value_has_no_interval():
    assert claims.interval([0.25]) == (0.25, None)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """4000 samples of 5: the share is known to 5 sqrt(0.95 0.05 / 4000) = 0.017.

    The normal's 1.96 in place of t's 2.78 would hold it in 88 %.
    """
    samples = np.random.default_rng(0).normal(0.3, 2, (4000, 5))
    intervals = [claims.interval(sample) for sample in samples]
    holds = np.mean([abs(mean - 0.3) <= half_width for mean, half_width in intervals])
    assert holds == pytest.approx(0.95, abs=5 * (0.95 * 0.05 / 4000) ** 0.5)


def test_without_a_difference_few_claims_are_decided():
    """Of 4000 samples about 0, 2.5 % each way, to 5 sqrt(0.025 0.975 / 4000) = 0.0123."""
    samples = np.random.default_rng(1).normal(0, 1, (4000, 3))
    verdicts = [claims.decide(sample, 1) for sample in samples]
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
        ([], 0),
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
        assert claims.decide(differences, sign) == verdicts[1 + side]
    assert claims.decide(differences, -1) == words[1][1 - side]


def test_a_higher_level_asks_for_more():
    # 3 +- 4.604095 sqrt(2.5 / 5) = 3.26 at 99 %; equal ones need 2^(1 - n) <= 0.01, eight seeds.
    assert claims.decide([1, 2, 3, 4, 5], 1, 0.99) == "undecided"
    assert claims.decide([1] * 7, 1, 0.99) == "undecided"
    assert claims.decide([1] * 8, 1, 0.99) == "confirmed"


def _cell(arg, **columns):
    """A cell with members 0, 1, 2, ... from lists of what summaries hold; None where a member lacks it."""
    number = max(map(len, columns.values()), default=0)
    members = []
    for seed in range(number):
        summary = {key: values[seed] for key, values in columns.items() if values[seed] is not None}
        records = [{"train/loss": 9.0, "step": 1}, {"train/loss": summary.pop("loss", 1.0), "step": 2}]
        members.append(evidence.member(seed, records, summary))
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
        "seeds": 3,
        "verdict": "undecided",
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
    late = Cell("b", {}, None, [evidence.member(7, [], {"accuracy": 0.5})])
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
    assert evidence.member(0, records, {}).numbers[metric] == pytest.approx(value)
    assert metric not in evidence.member(0, [], {}).numbers


def test_a_loss_that_is_never_or_at_once_reached():
    # The third rises before it falls: half-way from the least, 0.2, to 0.
    for losses, steps in (([0.5, 0.4], 14), ([0.05, 0.2], 7), ([0.2, 0.9, 0.0], 17.5)):
        records = [{"step": 7 * epoch, "train/loss": loss} for epoch, loss in enumerate(losses, 1)]
        assert evidence.member(0, records, {}).numbers["steps_to_loss_0.1"] == pytest.approx(steps)


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
    full = evidence.member(0, records, summary)
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
    without = evidence.member(0, [{"step": 1}], {"shift": [], "train_accuracy": 0.9})
    assert without.numbers == {"train_accuracy": 90} and evidence.member(0, [], {}).numbers == {}


def test_the_largest_shift_is_on_either_side_of_one():
    assert largest_shift([{"ratio": 0.5}, {"ratio": 1.2}]) == 2
    assert largest_shift([{"ratio": 0.9}, {"ratio": 1.2}]) == 1.2
    assert largest_shift([]) is None and largest_shift(None) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: claims.interval([]), "a value or more"),
        (lambda: claims.interval([1, 2], 95), r"a level in \(0, 1\)"),
        (lambda: claims.decide([1, 2], 2), "sign of a claim is 1, -1 or 0"),
        (lambda: claims.judge([B_ABOVE_A._replace(metric="acuracy")], []), "Did you mean 'accuracy'"),
    ],
    ids=["no values", "level", "sign", "metric"],
)
def test_requests_that_are_refused(call, message):
    with pytest.raises(DropbnError, match=message):
        call()
