"""What an examination comes to, in sentences."""

from typing import TYPE_CHECKING

from dropbn.diagnose.examine.retraining import ACCEPTED
from dropbn.diagnose.gap import Gap
from dropbn.diagnose.scores import Difference
from dropbn.diagnose.shift import Shift

if TYPE_CHECKING:
    from dropbn.diagnose.examine.examination import Examination

_REPAIRS = {"recalibrated statistics": "dropout_off", "precise BN": "precise_bn"}


def sentences(found: "Examination") -> list[str]:
    """What is wrong, in up to three sentences: about the shift, the gap, and what helps."""
    shift = found.measured or found.predicted
    said = [_of_shift(shift, bool(found.measured))] if shift else []
    if found.gap:
        said += [_of_gap(found.gap), _of_remedies(found.gap)]
    elif found.lint.errors():
        places = len(found.lint.errors())
        said.append(f"Lint finds noise that shifts batch normalizations: {places} times.")
    return said or ["Lint finds no noise that shifts a batch normalization."]


def recommendation(found: "Examination") -> str:
    """One thing to do, or that nothing is known to be wrong."""
    best = _best(found.gap) if found.gap else None
    if best:
        return f"Take {best['remedy']}: {best['call']}."
    shift, errors = found.measured or found.predicted, found.lint.errors()
    is_shifted = min(row["ratio"] for row in shift.rows) < ACCEPTED if shift else bool(errors)
    if not is_shifted:
        seen = " that was seen" if found.not_seen else ""
        return f"Nothing{seen} is wrong with noise and batch normalization: leave the model as it is."
    if found.measured and not found.gap:
        return (
            "Take the statistics again: recalibrate.recalibrate(model, variables, train_batches). What that "
            "gains was not measured, for want of test batches."
        )
    changes = found.retraining.rows[1:] if found.retraining else []
    known = [row for row in changes if row["ratio"] is not None]
    if known:
        row = min(known, key=lambda row: max(row["ratio"], 1 / row["ratio"]))
        return (
            "Leave this model as it is, as no remedy gains more than its error, and train the next one with "
            if found.gap
            else "Train with "
        ) + f"{row['change']}: the predicted ratio is {row['ratio']:.2f}."
    return errors[0]["advice"] if errors else "See the most shifted layers: no change was predicted to help."


def repair(found: "Examination") -> str:
    """The recipe of `recalibrate` that the recommendation names; "" if it names none."""
    best = _best(found.gap) if found.gap else None
    return _REPAIRS.get(best["remedy"], "") if best else ""


def _best(gap):
    """The remedy with the largest gain that exceeds its error; None if none does."""
    helps = [row for row in gap.remedies.rows if row["error"] is not None and row["least"] > 0]
    return max(helps, key=lambda row: row["gain"], default=None)


def _of_shift(shift: Shift, is_measured: bool) -> str:
    worst = shift.most_shifted(1)[0]
    shifted = sum(not ACCEPTED <= row["ratio"] <= 1 / ACCEPTED for row in shift.rows)
    how = "has" if is_measured else "is predicted to have"
    return (
        f"In test mode the input of '{worst['layer']}' {how} {worst['ratio']:.2f} times the variance that it "
        f"remembers from training. Off by more than {100 * (1 - ACCEPTED):.0f} %: {shifted} of "
        f"{len(shift.rows)} batch normalizations."
    )


def _of_gap(gap: Gap) -> str:
    *causes, (_, whole) = zip((row["cause"] for row in gap.shares.rows), gap.shares.lost, strict=True)
    sure = [(cause, lost) for cause, lost in causes if (lost.least(len(causes)) or 0) > 0]
    sure.sort(key=lambda share: -share[1].value)
    shares = ", ".join(f"{cause} {_words(gap, lost)}" for cause, lost in sure)
    of_it = f"Of it: {shares}" if sure else "No cause has a share that exceeds its error"
    changes = "loses" if whole.value >= 0 else "gains"
    size = _words(gap, whole._replace(value=abs(whole.value)))
    return f"From training mode on training data to test mode on test data it {changes} {size}. {of_it}."


def _of_remedies(gap: Gap) -> str:
    if best := _best(gap):
        return f"On test data {best['remedy']} gains {_words(gap, Difference(best['gain'], best['error']))}."
    if not gap.remedies.rows:
        return "No remedy could be tried."
    gains = ", ".join(
        f"{row['remedy']} {_words(gap, Difference(row['gain'], row['error']))}" for row in gap.remedies.rows
    )
    return f"On test data no remedy gains more than its error: {gains}."


def _words(gap, difference):
    is_accuracy = gap.rows[0]["accuracy"] is not None
    size = difference.words("correct" if is_accuracy else "loss").replace("+-", "±")
    return f"{size} of accuracy" if is_accuracy else f"{size} of loss"
