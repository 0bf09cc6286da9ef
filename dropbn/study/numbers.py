"""The numbers of a finished run, read from its summary and the records of its epochs."""

import numpy as np


def largest_shift(rows: list[dict] | None) -> float | None:
    """The largest max(r, 1 / r) over the BN layers' shift ratios r (Li et al. 2018, Fig. 4); None without BN.

    Args:
      rows: the rows of a `dropbn.diagnose.shift.Shift`, each with "ratio"; empty or None without BN.
    """
    return max((max(row["ratio"], 1 / row["ratio"]) for row in rows or ()), default=None)


def _percent(share):
    return None if share is None else 100 * share


def _of_summary(key):
    return lambda summary, records: summary.get(key)


def _share(key):
    return lambda summary, records: _percent(summary.get(key))


def _recalibrated(recipe):
    return lambda summary, records: _percent(summary.get("recalibrated", {}).get(recipe))


def _last(key):
    return lambda summary, records: records[-1].get(key) if records else None


def _train_gap(summary, records):
    noisy, plain = summary.get("train_accuracy"), summary.get("train_accuracy_test_mode")
    return None if None in (noisy, plain) else 100 * (noisy - plain)


def _curve(records, key):
    """(steps, mean training losses) of the epochs; the objective is the loss plus the penalty."""
    found = [
        (record["step"], record["train/loss"] + (key == "objective") * record.get("train/penalty", 0))
        for record in records
        if "train/loss" in record
    ]
    return np.array(found).reshape(-1, 2).T


def _after(part, key):
    """The mean loss of the epoch that reaches 1 / part of the steps."""

    def read(summary, records):
        steps, losses = _curve(records, key)
        return float(losses[np.searchsorted(steps, steps[-1] / part)]) if steps.size else None

    return read


def _steps_to(level, key):
    """The steps until the smallest loss so far, linear between epochs, reaches a level; else all steps."""

    def read(summary, records):
        steps, losses = _curve(records, key)
        return float(np.interp(-level, -np.minimum.accumulate(losses), steps)) if steps.size else None

    return read


# The numbers of a run: name -> a function of (summary, records) that returns the number, or None if the run
# does not have it. Accuracies are in %, losses in nats.
NUMBERS = {
    "accuracy": _share("accuracy"),
    "test_loss": _of_summary("loss"),
    "adjusted_accuracy": _recalibrated("li2018_torch"),
    "literally_adjusted_accuracy": _recalibrated("li2018"),
    "recalibrated_accuracy": _recalibrated("dropout_off"),
    "shift": lambda summary, records: largest_shift(summary.get("shift")),
    "shift_li2018": lambda summary, records: largest_shift(summary.get("shift_li2018")),
    "train_accuracy": _share("train_accuracy"),
    "train_accuracy_test_mode": _share("train_accuracy_test_mode"),
    "train_gap": _train_gap,
    "loss": _last("train/loss"),
    "penalty": _last("train/penalty"),
    "loss_after_a_tenth": _after(10, "loss"),
    "loss_after_a_third": _after(3, "loss"),
    "steps_to_loss_0.1": _steps_to(0.1, "loss"),
    "objective_after_a_tenth": _after(10, "objective"),
    "objective_after_a_third": _after(3, "objective"),
    "steps_to_objective_0.6": _steps_to(0.6, "objective"),
}
