"""The numbers of a run, by hand from a summary and records."""

import pytest

from dropbn.study import claims, finished_runs
from dropbn.study.numbers import largest_shift

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
