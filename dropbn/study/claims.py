"""The statistics of a study: what a paper claims of two cells, and what our seeds say to it.

A claim is that one number is larger than another ("P5 above no dropout"). It is judged by the paired
differences over seeds: a seed fixes the initial weights and the order of the data in both cells, so that the
difference of one seed has less noise than that of two means. Accuracies also depend on which images were
drawn for the test, so their differences are paired by seed and by image.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dropbn.errors import DropbnError, unknown
from dropbn.study.estimates import Estimate, estimate
from dropbn.study.finished_runs import Cell

# By the sign of a claim: the verdict where the mean difference is below 0, undecided and above 0.
VERDICTS = {
    1: ("refuted", "undecided", "confirmed"),
    -1: ("confirmed", "undecided", "refuted"),
    0: ("less", "undecided", "more"),
}


class Metric(NamedTuple):
    """How a number of `numbers.NUMBERS` is spoken of.

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


def decide(
    found: Estimate, sign: int, paper: float | None = None, p: float | None = None, level: float = 0.95
) -> str:
    """What an estimated difference says to a claim about its sign.

    Args:
      found: the estimate.
      sign: what is claimed of the mean difference: 1 or -1; 0 asks.
      paper: the paper's difference.
      p: the two-sided p of no difference, adjusted for the number of claims; None: the estimate's own.
      level: of confidence, between 0 and 1; p is compared with 1 - level.

    Returns:
      "confirmed": the mean difference has the claimed sign. "refuted": the other sign. For sign 0, "more"
      (above 0) and "less" (below 0). "smaller here": the sign is undecided, but the difference is below the
      paper's; "confirmed, smaller here": both. "undecided": else.

    Raises:
      DropbnError: a sign other than 1, -1 and 0.
    """
    if sign not in VERDICTS:
        raise DropbnError(f"The sign of a claim is 1, -1 or 0, got {sign!r}.")

    def decided(p):
        return p is not None and p <= 1 - level

    side = int(np.sign(found.mean)) if decided(found.p() if p is None else p) else 0
    verdict = VERDICTS[sign][1 + side]
    if paper is None or sign * found.mean >= sign * paper or not decided(found.p(paper)):
        return verdict
    return {"confirmed": "confirmed, smaller here", "undecided": "smaller here"}.get(verdict, verdict)


def paired(more: Cell | None, less: Cell | None, metric: str, less_metric: str = "") -> np.ndarray:
    """The differences more - less of a number, paired by seed, of the seeds that have both.

    Args:
      more, less: the cells; None has no seeds.
      metric: the number, of `METRICS`.
      less_metric: that of `less`; "": the same.

    Returns:
      (seeds,), or of accuracies (seeds, images), 100 times the difference of correctness, where every
      member keeps which images it has right and their number is one.

    Raises:
      DropbnError: an unknown metric.
    """
    sides = (more, metric), (less, less_metric or metric)
    numbers = [_values(*side) for side in sides]
    seeds = sorted(numbers[0].keys() & numbers[1].keys())
    right = [_correct(*side, seeds) for side in sides]
    lengths = {len(one) for side in right for one in side}
    if len(lengths) == 1 and min(lengths) > 1:
        return 100 * np.subtract(*right, dtype=np.float64)
    return np.array([numbers[0][seed] - numbers[1][seed] for seed in seeds])


# What a claim's row has besides the claim, in this order.
_FOUND = ("difference", "interval", "over", "seeds", "se_seeds", "se_images")
_FOUND += ("p", "p_adjusted", "p_fdr", "verdict", "seeds_needed", "images_needed")


def judge(claims: Iterable[Claim], cells: Iterable[Cell], level: float = 0.95) -> list[dict]:
    """What the finished runs of a study say to claims.

    Differences d = more - less are paired, over the seeds that have both numbers. Accuracies are in points
    (of 100), shifts and losses as they are. One statistic, `estimate`, gives interval, p and verdict.

    Of 20 claims about differences that are 0, one would be decided by chance. So p is adjusted for the number
    of claims by Holm (1979), which keeps the probability that any true 0 of the table is decided below
    1 - level, and beside it by Benjamini & Hochberg (1995), which keeps the share of true zeros among what is
    decided below that. The family is the claims with a sign that have a p. A test that stands there twice,
    because two cells have equal numbers in every seed (one network by two names, such as dropout before and
    after ReLU: Kim et al. 2023, Proposition 1), counts once. Questions are answered each alone.

    Args:
      claims: what is claimed.
      cells: the study's cells with their members.
      level: of confidence.

    Returns:
      A row for each claim:
        claim, source, metric, paper: the claim's own.
        difference: the mean of d; None where nothing was run.
        interval: half width of its interval, difference +- interval, not adjusted; None with fewer than two
          seeds.
        over: what the interval is over, "seeds and images" or "seeds"; "seeds, images unknown" for accuracies
          whose members do not keep, on equally many images, which they have right.
        seeds: the number of pairs.
        se_seeds, se_images: the roots of `Estimate.of_seeds` and `of_images`, the standard errors from seeds
          and from images alone.
        p: two-sided, of no difference.
        p_adjusted, p_fdr: the same by Holm and by Benjamini & Hochberg; None for questions.
        verdict: of `decide`, by p_adjusted, or by p for questions; "smaller here" by the interval shown.
          "not run" where no seed has both numbers, because a side has no member, lacks the number, or is no
          cell of the study.
        seeds_needed, images_needed: `Estimate.needed` for the paper's difference, where the verdict is
          "undecided".

    Raises:
      DropbnError: an unknown metric.
    """
    claims, cells = list(claims), {cell.arg: cell for cell in cells}
    sides = [(cells.get(claim.more), cells.get(claim.less)) for claim in claims]
    found = []
    for claim, (more, less) in zip(claims, sides, strict=True):
        differences = paired(more, less, claim.metric, claim.less_metric)
        found.append(estimate(differences) if len(differences) else None)
    tests = [_test(claim, *pair) if claim.sign else None for claim, pair in zip(claims, sides, strict=True)]
    family = {test: one.p() for test, one in zip(tests, found, strict=True) if test and one}
    adjusted = _adjusted({test: p for test, p in family.items() if p is not None})
    return [
        _row(claim, one, *adjusted.get(test, (None, None)), level)
        for claim, test, one in zip(claims, tests, found, strict=True)
    ]


def _test(claim, more, less):
    """Equal for two claims that compare the same numbers."""

    def numbers(cell):
        return tuple((one.seed, *sorted(one.numbers.items())) for one in cell.members) if cell else ()

    return frozenset({(claim.metric, numbers(more)), (claim.less_metric or claim.metric, numbers(less))})


def _adjusted(family):
    """{test: (p by Holm, p by Benjamini & Hochberg)} of {test: p}."""
    from scipy import stats

    if not family:
        return {}
    p = np.array(list(family.values()))
    order = np.argsort(p)
    holm = np.empty_like(p)
    holm[order] = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]).clip(max=1)
    both = zip(holm.tolist(), stats.false_discovery_control(p).tolist(), strict=True)
    return dict(zip(family, both, strict=True))


def _row(claim, found, p_adjusted, p_fdr, level):
    row = {"claim": claim.claim, "source": claim.source, "metric": claim.metric, "paper": claim.paper}
    row |= dict.fromkeys(_FOUND) | {"seeds": 0, "verdict": "not run"}
    if found is None:
        return row
    mean, half_width = found.interval(level)
    crossed, several = found.images > 1, found.seeds > 1
    verdict = decide(found, claim.sign, claim.paper, p_adjusted, level)
    asks_more = verdict == "undecided" and claim.sign and claim.paper
    seeds_needed, images_needed = found.needed(claim.paper, level) if asks_more else (None, None)
    unknown_images = ", images unknown" if METRICS[claim.metric].images else ""
    return row | {
        "difference": mean,
        "interval": half_width,
        "over": "seeds and images" if crossed else f"seeds{unknown_images}",
        "seeds": found.seeds,
        "se_seeds": found.of_seeds**0.5 if several else None,
        "se_images": found.of_images**0.5 if several and crossed else None,
        "p": found.p(),
        "p_adjusted": p_adjusted,
        "p_fdr": p_fdr,
        "verdict": verdict,
        "seeds_needed": seeds_needed,
        "images_needed": images_needed,
    }


def _values(cell, metric):
    """seed -> the number, of the members that have it."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    return cell.values(metric) if cell else {}


def _correct(cell, metric, seeds):
    """Which images are right, of each seed; () where the member does not say."""
    found = {one.seed: one.correct.get(METRICS[metric].images, ()) for one in cell.members} if cell else {}
    return [found[seed] for seed in seeds]
