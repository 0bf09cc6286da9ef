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
        """What is wrong, in up to three sentences: about the shift, the gap, and what helps."""
        said = [_of_shift(self._shift, bool(self.measured))] if self._shift else []
        if self.gap:
            said += [_of_gap(self.gap), _of_remedies(self.gap)]
        elif errors := self.lint.errors():
            said.append(f"Lint finds noise that shifts batch normalizations: {len(errors)} times.")
        return said or ["Lint finds no noise that shifts a batch normalization."]

    @property
    def recommendation(self) -> str:
        """One thing to do, or that nothing is known to be wrong."""
        if self.gap and (best := self.gap.remedies.best):
            return f"Take {best['remedy']}: {best['call']}."
        errors = self.lint.errors()
        if not (any(map(_is_off, self._shift.rows)) if self._shift else errors):
            seen = " that was seen" if self.not_seen else ""
            return f"Nothing{seen} is wrong with noise and batch normalization: leave the model as it is."
        if self.measured and not self.gap:
            return (
                "Take the statistics again: recalibrate.recalibrate(model, variables, train_batches). What "
                "that gains was not measured, because there are no results on test batches."
            )
        changes = self.retraining.rows[1:] if self.retraining else []
        if known := [row for row in changes if row["ratio"] is not None]:
            row = min(known, key=lambda row: max(row["ratio"], 1 / row["ratio"]))
            before = "Leave this model as it is: no remedy gains more than its error. " * bool(self.gap)
            train = "Train the next one" if self.gap else "Train"
            return f"{before}{train} with {row['change']}: the predicted ratio is {row['ratio']:.2f}."
        return errors[0]["advice"] if errors else "No change was predicted to help the most shifted layers."

    @property
    def repair(self) -> str:
        """The recipe of `recalibrate` that the recommendation names; "" if it names none."""
        best = self.gap.remedies.best if self.gap else None
        return _REPAIRS.get(best["remedy"], "") if best else ""

    @property
    def not_seen(self) -> list[str]:
        """What the tools do not understand, switch or measure, and steps that were not done."""
        draws = [row["layer"] for row in self.rows if row["kind"] == "random draw" and row["test"] == "off"]
        states = [row["layer"] for row in self.rows if row["kind"] == "other running state"]
        said = [f"No switch reaches the random draw at {where}." for where in draws]
        said += [f"The running state of {name} is not measured." for name in states]
        said += [self.gap.unseen] if self.gap and self.gap.unseen else []
        return said + [f"The step '{step}' was not done: {why}" for step, why in self.skipped.items()]

    @property
    def _shift(self):
        return self.measured or self.predicted

    def __rich__(self) -> rich.console.RenderableType:
        shown: list[Any] = [rich.text.Text(self.title, "bold"), self.lint]
        if found := self._shift:
            shown.append(Shift(found.most_shifted(5), f"{found.title}, the most shifted layers"))
        if self.gap:
            shown += [self.gap.shares, self.gap.remedies]
        if self.retraining and len(self.retraining.rows) > 1:
            shown.append(self.retraining)
        lines = [*self.verdict, *self.not_seen, f"Recommended: {self.recommendation}"]
        return rich.console.Group(*shown, *map(rich.text.Text, lines))


def _is_off(row):
    """Whether a ratio is too far from 1 to be left as it is."""
    return not ACCEPTED <= row["ratio"] <= 1 / ACCEPTED


def _of_shift(shift: Shift, is_measured: bool) -> str:
    worst = shift.most_shifted(1)[0]
    shifted = sum(map(_is_off, shift.rows))
    how = "has" if is_measured else "is predicted to have"
    return (
        f"In test mode the input of '{worst['layer']}' {how} {worst['ratio']:.2f} times the variance that it "
        f"remembers from training. {shifted} of {len(shift.rows)} batch normalizations "
        f"{'is' if shifted == 1 else 'are'} off by more than {100 * (1 - ACCEPTED):.0f} %."
    )


def _of_gap(gap: Gap) -> str:
    whole = gap.shares.lost[-1]
    shares = ", ".join(f"{row['cause']} {_words(gap, lost)}" for row, lost in gap.shares.sure)
    causes = f"The shares that exceed their errors are {shares}" if shares else "No share exceeds its error"
    changes = "loses" if whole.value >= 0 else "gains"
    size = _words(gap, whole._replace(value=abs(whole.value)))
    return f"From training mode on training data to test mode on test data it {changes} {size}. {causes}."


def _of_remedies(gap: Gap) -> str:
    if best := gap.remedies.best:
        return f"On test data {' gains '.join(_gain(gap, best))}."
    if not gap.remedies.rows:
        return "No remedy could be tried."
    gains = ", ".join(" ".join(_gain(gap, row)) for row in gap.remedies.rows)
    return f"On test data no remedy gains more than its error: {gains}."


def _gain(gap, row):
    return row["remedy"], _words(gap, Difference(row["gain"], row["error"]))


def _words(gap, difference):
    is_accuracy = gap.rows[0]["accuracy"] is not None
    size = difference.words("correct" if is_accuracy else "loss").replace("+-", "±")
    return f"{size} of accuracy" if is_accuracy else f"{size} of loss"
