"""What each cause takes on the way from train mode to test mode, as differences of the grid's rows.

Seven things change on this way. The evaluation grid has a row before and after each of them, so the
differences add up to the gap:

==================  ============================  ============================
cause               before                        after
==================  ============================  ============================
small-batch noise   on, batch, train              on, converged by call, train
shared statistics   on, converged by call, train  on, converged, train
dropout noise       on, converged, train          off, recalibrated, train
variance shift      off, recalibrated, train      off, converged, train
lagging statistics  off, converged, train         off, running, train
augmentation        off, running, train           off, running, train plain
generalisation      off, running, train plain     off, running, test
==================  ============================  ============================

A row is named by noise, BN statistics and images (`dropbn.diagnose.grid`). Neighbouring kinds of statistics
differ in one respect only.

The shares belong to this order of the changes; another order would give others. They are measured on training
images, so a share is not what its repair brings. `dropbn.diagnose.remedies` measures that on test images.
"""

import dataclasses
import itertools
from collections.abc import Collection
from typing import NamedTuple

import rich.console

from dropbn.diagnose.grid import BY_CALL, PLAIN, Cell
from dropbn.diagnose.scores import Difference, Scores, difference
from dropbn.results import Result

# cause -> what it means, and what training may change about it
CAUSES = {
    "small-batch noise": "The network does better with the statistics of the current batch than with "
    "remembered ones. Larger batches, or statistics synced over devices, bring the two closer. So do batches "
    "of unrelated images.",
    "shared statistics": "A BN that is called several times has one running mean and variance for "
    "different inputs. A BN for each domain, or one call on all domains together, avoids this. Recalibration "
    "does not.",
    "dropout noise": "The network does better with noise than without. A lower rate brings the two closer.",
    "variance shift": "BN remembers variances that noise had inflated. To avoid this in training, put noise "
    "after the last BN (Kim et al. 2023, Guideline 1; Li et al. 2018, section 5), use Uout, or lower the "
    "rate. shift.measure names the layers.",
    "lagging statistics": "The running statistics lag behind the weights. A smaller learning rate at the end "
    "of training, or a lower BN momentum, avoids this.",
    "augmentation": "The network does better on augmented images than on plain ones. Weaker augmentation "
    "brings the two closer.",
    "generalisation": "The network does better on training images than on test images. More data, "
    "augmentation or regularisation may help.",
}


@dataclasses.dataclass(frozen=True)
class Shares(Result):
    """The share of each cause, and the whole gap in the last row.

    Each row holds:
      cause: a key of `CAUSES`, or "the whole gap".
      before, after: the grid's rows on either side.
      accuracy: what is lost between them, before - after; None where the score gives no accuracy.
      error: its standard error (`dropbn.diagnose.scores`); None where it is not known, as for statistics from
        one batch.
      loss, loss_error: what the loss gains, after - before, and its standard error.

    Attributes:
      lost: what each row loses, in accuracy, or in loss where there is no accuracy.
    """

    lost: tuple[Difference, ...] = dataclasses.field(default=(), repr=False)

    def __rich__(self) -> rich.console.RenderableType:
        # A row's `before` is the `after` of the row above it.
        return self.without("before").__rich__()

    @property
    def sure(self) -> list[tuple[dict, Difference]]:
        """The rows of the causes whose shares exceed their errors, with what they lose, the largest first."""
        *causes, _ = zip(self.rows, self.lost, strict=True)
        sure = [(row, lost) for row, lost in causes if (lost.least(len(causes)) or 0) > 0]
        return sorted(sure, key=lambda share: share[1].value, reverse=True)

    @property
    def advice(self) -> str:
        """The largest share that exceeds its error, and what training may change about it; "" without one."""
        if not self.sure:
            return ""
        row, lost = self.sure[0]
        size = lost.words("loss" if row["accuracy"] is None else "correct")
        where = f"from ({row['before']}) to ({row['after']})"
        return f"The largest share of the gap is {row['cause']}: {size} {where}. {CAUSES[row['cause']]}"


class Step(NamedTuple):
    """One change on the way, and the cells of the grid before and after it."""

    cause: str
    before: Cell
    after: Cell


def path(has_noise: bool, kinds: Collection[str], has_plain: bool) -> list[Step]:
    """The steps from train mode on training images to test mode on test images.

    Args:
      has_noise: whether the model draws noise in training.
      kinds: the kinds of statistics in the grid.
      has_plain: whether the grid has training images without augmentation.
    """
    has_norm = "batch" in kinds
    after = {}
    if BY_CALL in kinds:
        after["small-batch noise"] = Cell(has_noise, BY_CALL, "train")
        after["shared statistics"] = Cell(has_noise, "converged", "train")
    elif has_norm:
        after["small-batch noise"] = Cell(has_noise, "converged", "train")
    if has_noise:
        after["dropout noise"] = Cell(False, "recalibrated" if has_norm else "running", "train")
    if has_noise and has_norm:
        after["variance shift"] = Cell(False, "converged", "train")
    if has_norm:
        after["lagging statistics"] = Cell(False, "running", "train")
    if has_plain:
        after["augmentation"] = Cell(False, "running", PLAIN)
    after["generalisation"] = Cell(False, "running", "test")
    cells = [Cell(has_noise, "batch" if has_norm else "running", "train"), *after.values()]
    return [Step(cause, *sides) for cause, sides in zip(after, itertools.pairwise(cells), strict=True)]


def split(scores: dict[Cell, Scores], path: list[Step]) -> Shares:
    """The share of each step of the path, and of the whole."""
    steps = [*path, Step("the whole gap", path[0].before, path[-1].after)]
    rows, lost = zip(*(_share(step, scores) for step in steps), strict=True)
    return Shares(list(rows), "What is lost from train mode to test mode, one change at a time", lost)


def _share(step, scores):
    before, after = scores[step.before], scores[step.after]
    paired = step.after.data != "test"
    accuracy = difference(after, before, "correct", paired=paired)
    loss = difference(before, after, "loss", paired=paired)
    row = {
        "cause": step.cause,
        "before": str(step.before),
        "after": str(step.after),
        "accuracy": accuracy and accuracy.value,
        "error": accuracy and accuracy.error,
        "loss": loss.value,
        "loss_error": loss.error,
    }
    return row, accuracy or loss
