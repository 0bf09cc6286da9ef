"""The statistics of a study: what a paper claims of two cells, and what our seeds say to it.

A claim is that one number is larger than another ("P5 above no dropout"). It is judged by the paired
differences over seeds: a seed fixes the initial weights and the order of the data in both cells, so that the
difference of one seed has less noise than that of two means.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dropbn.errors import DropbnError, unknown
from dropbn.evidence import Cell

# By the sign of a claim: the verdict where the mean difference is below 0, undecided and above 0.
VERDICTS = {
    1: ("refuted", "undecided", "confirmed"),
    -1: ("confirmed", "undecided", "refuted"),
    0: ("less", "undecided", "more"),
}


class Metric(NamedTuple):
    """How a number of `evidence.NUMBERS` is spoken of.

    Attributes:
      quantity: what it is called in a sentence.
      prefix: what it makes of a cell's name in a sentence.
      images: of an accuracy, the key of `Finished.correct` with the images behind it; "" of other numbers.
    """

    quantity: str
    prefix: str = ""
    images: str = ""


METRICS = {
    "accuracy": Metric("accuracy", images="running"),
    "adjusted_accuracy": Metric("accuracy", "adjusted ", "li2018_torch"),
    "literally_adjusted_accuracy": Metric("accuracy", "literally adjusted ", "li2018"),
    "recalibrated_accuracy": Metric("accuracy", "recalibrated ", "dropout_off"),
    "test_loss": Metric("test loss"),
    "shift": Metric("largest shift"),
    "train_gap": Metric("train mode minus test mode"),
    "loss": Metric("training loss"),
    "penalty": Metric("sparsity penalty"),
    "loss_after_a_tenth": Metric("training loss after a tenth of the steps"),
    "loss_after_a_third": Metric("training loss after a third of the steps"),
    "steps_to_loss_0.1": Metric("steps to a training loss of 0.1"),
    "objective_after_a_tenth": Metric("loss + penalty after a tenth of the steps"),
    "objective_after_a_third": Metric("loss + penalty after a third of the steps"),
    "steps_to_objective_0.6": Metric("steps to a loss + penalty of 0.6"),
}


class Claim(NamedTuple):
    """That a number of one cell is larger than one of another, or the question whether it is.

    Attributes:
      claim: the sentence.
      more: arg of the cell whose number is larger according to the paper.
      less: arg of the other; the same cell where the metrics differ.
      metric: the number, of `METRICS`.
      source: where the paper says so.
      paper: the paper's difference, more - less (of accuracies in points); None where it gives none.
      less_metric: the number of `less`; "": the same metric.
      sign: 1 for a claim; 0 for a question, of which no source says the answer.
    """

    claim: str
    more: str
    less: str
    metric: str
    source: str
    paper: float | None = None
    less_metric: str = ""
    sign: int = 1


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """The mean and its confidence interval by Student's t: mean +- t_{(1 + level) / 2, n - 1} s / sqrt(n).

    s^2 = sum (x - mean)^2 / (n - 1). It holds the true mean in a share `level` of all samples of normal
    values; equal values give a half width of 0, which `decide` does not believe.

    Args:
      values: one a seed, at least one.
      level: of confidence, between 0 and 1.

    Returns:
      (mean, half width); the half width is None with fewer than two values.

    Raises:
      DropbnError: no values, a level outside (0, 1).

    Source: Student (1908), "The probable error of a mean".
    """
    import scipy.special  # Here, because the configs read this file and their commands start without it.

    values = np.asarray(values, np.float64)
    number = len(values)
    if not number or not 0 < level < 1:
        raise DropbnError(f"An interval wants a value or more and a level in (0, 1), got {number}, {level}.")
    if number < 2:
        return float(values.mean()), None
    quantile = scipy.special.stdtrit(number - 1, (1 + level) / 2)
    return float(values.mean()), float(quantile * values.std(ddof=1) / number**0.5)


def decide(differences: Sequence[float], sign: int, level: float = 0.95) -> str:
    """What paired differences over seeds say to a claim about their sign.

    Decided where the `interval` of the mean difference excludes 0. Accuracies are multiples of 1 / images, so
    a few seeds may differ by exactly the same amount; the interval's width of 0 would then decide from two
    seeds. Equal differences are decided by the exact sign test instead, which asks nothing of their spread:
    n differences of one sign have the two-sided p = 2^(1 - n), at most 1 - level. At 95 % that takes 6 seeds
    (5 give p = 0.0625).

    Args:
      differences: more - less, one a seed.
      sign: what is claimed of the mean difference: 1 or -1; 0 asks.
      level: of confidence, between 0 and 1.

    Returns:
      "confirmed": the mean difference has the claimed sign. "refuted": the other sign. For sign 0, "more"
      (above 0) and "less" (below 0). "undecided": the interval holds 0, a difference is not a number, or
      there are fewer than two.

    Raises:
      DropbnError: a sign other than 1, -1 and 0, a level outside (0, 1).
    """
    if sign not in VERDICTS:
        raise DropbnError(f"The sign of a claim is 1, -1 or 0, got {sign!r}.")
    return VERDICTS[sign][1 + (_side(differences, level) if len(differences) else 0)]


def _side(differences, level):
    """-1 or 1 where the mean difference is below or above 0 beyond doubt, else 0."""
    mean, half_width = interval(differences, level)
    if half_width is None:
        return 0
    if np.ptp(differences) <= 1e-9 * abs(mean):  # But for rounding, all are equal.
        decided = mean != 0 and 2.0 ** (1 - len(differences)) <= 1 - level
    else:
        decided = abs(mean) > half_width
    return int(np.sign(mean)) if decided else 0


def paired(more: Cell | None, less: Cell | None, metric: str, less_metric: str = "") -> list[float]:
    """The differences more - less of a number, by seed, of the seeds that have both.

    Args:
      more, less: the cells; None has no seeds.
      metric: the number, of `METRICS`.
      less_metric: that of `less`; "": the same.

    Raises:
      DropbnError: an unknown metric.
    """
    more, less = _values(more, metric), _values(less, less_metric or metric)
    return [more[seed] - less[seed] for seed in sorted(more.keys() & less.keys())]


def judge(claims: Iterable[Claim], cells: Iterable[Cell], level: float = 0.95) -> list[dict]:
    """What the finished runs of a study say to claims.

    Differences are paired by seed, over the seeds that have both numbers: d = more - less. Shares of images
    are in points (of 100), shifts and losses as they are. Each claim is judged alone: at 95 %, of 20 claims
    about differences that are 0 one is decided by chance.

    Args:
      claims: what is claimed.
      cells: the study's cells with their members.
      level: of confidence.

    Returns:
      A row for each claim:
        claim, source, metric, paper: the claim's own.
        difference: the mean of d; None where nothing was run.
        interval: half width of its interval, difference +- interval; None with fewer than two seeds.
        seeds: the number of pairs.
        verdict: of `decide`; "not run" where no seed has both numbers, because a side has no member, lacks
          the number, or is no cell of the study.

    Raises:
      DropbnError: an unknown metric.
    """
    cells = {cell.arg: cell for cell in cells}
    return [_judged(claim, cells, level) for claim in claims]


def _judged(claim, cells, level):
    more, less = cells.get(claim.more), cells.get(claim.less)
    differences = paired(more, less, claim.metric, claim.less_metric)
    mean, half_width = interval(differences, level) if differences else (None, None)
    return {
        "claim": claim.claim,
        "source": claim.source,
        "metric": claim.metric,
        "paper": claim.paper,
        "difference": mean,
        "interval": half_width,
        "seeds": len(differences),
        "verdict": decide(differences, claim.sign, level) if differences else "not run",
    }


def _values(cell, metric):
    """seed -> the number, of the members that have it."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    return cell.values(metric) if cell else {}
