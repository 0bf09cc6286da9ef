"""What an examination finds, and what it comes to in sentences."""

import dataclasses
from typing import Any

import rich.console
import rich.text

from dropbn.diagnose.examine.retraining import ACCEPTED
from dropbn.diagnose.gap import Gap
from dropbn.diagnose.lint.report import Report
from dropbn.diagnose.scores import Difference
from dropbn.diagnose.shift import Shift
from dropbn.results import Result

_REPAIRS = {"recalibrated statistics": "dropout_off", "precise BN": "precise_bn"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination(Result):
    """What an examination finds; `rows` are the layers, see `dropbn.diagnose.examine.inventory`.

    Attributes:
      name: of the model.
      lint: findings that need no data.
      predicted: the shift that the weights predict.
      measured: the shift of the running statistics.
      gap: what the gap between training and test mode consists of, and what each remedy brings.
      retraining: what is predicted of changes that need training anew.
      skipped: step -> why it was not done.
    """

    name: str
    lint: Report
    predicted: Shift | None = None
    measured: Shift | None = None
    gap: Gap | None = None
    retraining: Result | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> list[str]:
        """What is wrong, in up to three sentences."""
        return _sentences(self)

    @property
    def recommendation(self) -> str:
        """One thing to do, or that nothing is known to be wrong."""
        return _recommendation(self)

    @property
    def repair(self) -> str:
        """The recipe of `recalibrate` that is recommended; "" if none is."""
        return _repair(self)

    @property
    def not_seen(self) -> list[str]:
        """What the tools do not understand, switch or measure, and steps that were not done."""
        draws = [row["layer"] for row in self.rows if row["kind"] == "random draw" and row["test"] == "off"]
        states = [row["layer"] for row in self.rows if row["kind"] == "other running state"]
        said = [f"A random draw that no switch reaches: {where}." for where in draws]
        said += [f"Running state that is not measured: {name}." for name in states]
        said += [self.gap.unseen] if self.gap and self.gap.unseen else []
        return said + [f"Not done: {step}. {why}" for step, why in self.skipped.items()]

    def __rich__(self) -> rich.console.RenderableType:
        shown: list[Any] = [rich.text.Text(self.title, "bold"), self.lint]
        if found := self.measured or self.predicted:
            shown.append(Shift(found.most_shifted(5), f"{found.title}, the most shifted layers"))
        if self.gap:
            shown += [self.gap.shares, self.gap.remedies]
        if self.retraining and len(self.retraining.rows) > 1:
            shown.append(self.retraining)
        lines = [*self.verdict, *self.not_seen, f"Recommended: {self.recommendation}"]
        return rich.console.Group(*shown, *map(rich.text.Text, lines))


def _sentences(found: Examination) -> list[str]:
    """What is wrong, in up to three sentences: about the shift, the gap, and what helps."""
    shift = found.measured or found.predicted
    said = [_of_shift(shift, bool(found.measured))] if shift else []
    if found.gap:
        said += [_of_gap(found.gap), _of_remedies(found.gap)]
    elif found.lint.errors():
        places = len(found.lint.errors())
        said.append(f"Lint finds noise that shifts batch normalizations: {places} times.")
    return said or ["Lint finds no noise that shifts a batch normalization."]


def _recommendation(found: Examination) -> str:
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


def _repair(found: Examination) -> str:
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
