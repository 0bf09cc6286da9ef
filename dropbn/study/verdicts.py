"""The verdicts of a study: what our seeds say to its claims.

A claim is judged by the paired differences over seeds: a seed fixes the initial weights and the order of the
data in both cells, so a paired difference has less noise than the difference of two means. Accuracies also
depend on which images were drawn for the test, so their differences are paired by seed and by image.
"""

from collections.abc import Iterable

import numpy as np

from dropbn.errors import DropbnError, unknown
from dropbn.study.claims import METRICS, Claim
from dropbn.study.estimates import Estimate, estimate
from dropbn.study.finished_runs import Cell

# Sign of a claim -> the verdicts if the mean difference is below 0, undecided, and above 0.
VERDICTS = {
    1: ("refuted", "undecided", "confirmed"),
    -1: ("confirmed", "undecided", "refuted"),
    0: ("less", "undecided", "more"),
}


def decide(
    found: Estimate, sign: int, paper: float | None = None, p: float | None = None, level: float = 0.95
) -> str:
    """What an estimated difference says to a claim about its sign.

    Args:
      found: the estimate.
      sign: the claimed sign of the mean difference, 1 or -1; 0 for a question.
      paper: the paper's difference.
      p: the two-sided p of no difference, adjusted for the number of claims; None for the estimate's own p.
      level: the confidence level, between 0 and 1; p is compared with 1 - level.

    Returns:
      "confirmed": the mean difference has the claimed sign. "refuted": it has the other sign. "more" and
      "less", for sign 0: it is above or below 0. "smaller here": the sign is undecided, but the difference is
      below the paper's. "confirmed, smaller here": both. "undecided": none of these.

    Raises:
      DropbnError: the sign is not 1, -1 or 0.
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
    """The differences more - less of a number, paired by seed, for the seeds that have both numbers.

    Args:
      more, less: the cells; None counts as a cell without seeds.
      metric: the number, one of `METRICS`.
      less_metric: the number of `less`; "" if it is `metric` too.

    Returns:
      (seeds,). For accuracies (seeds, images), 100 times the difference of correctness, if every member
      records which images it has right and all of them have equally many images.

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


# The columns of a claim's row after those of the claim itself.
_FOUND: tuple[str, ...] = ("difference", "interval", "over", "seeds", "se_seeds", "se_images")
_FOUND += ("p", "p_adjusted", "p_fdr", "verdict", "seeds_needed", "images_needed")


def judge(claims: Iterable[Claim], cells: Iterable[Cell], level: float = 0.95) -> list[dict]:
    """What the finished runs of a study say to claims.

    Differences d = more - less are paired over the seeds that have both numbers. Accuracies are in points
    (of 100), shifts and losses in their own units. One statistic, `estimate`, gives interval, p and verdict.

    If 20 true differences are 0, one of them would be decided by chance. So p is adjusted for the number of
    claims by Holm (1979), which keeps the probability that any true 0 of the table is decided below
    1 - level, and also by Benjamini & Hochberg (1995), which keeps the expected share of true zeros among
    the decided claims below that. The family consists of the claims with a sign that have a p. A test that
    stands there twice counts once; that happens if two cells have equal numbers in every seed, such as
    dropout before and after ReLU (Kim et al. 2023, Proposition 1). Each question is answered by itself.

    Args:
      claims: what is claimed.
      cells: the study's cells with their members.
      level: the confidence level.

    Returns:
      A row for each claim:
        claim, source, metric, paper: those of the claim.
        difference: the mean of d; None if nothing was run.
        interval: half width of the unadjusted interval, difference +- interval; None with fewer than two
          seeds.
        over: what the interval is over, "seeds and images" or "seeds"; "seeds, images unknown" for accuracies
          if not every member records, on equally many images, which ones it has right.
        seeds: the number of pairs.
        se_seeds, se_images: the roots of `Estimate.of_seeds` and `of_images`, the standard errors from seeds
          and from images alone.
        p: the two-sided p of no difference.
        p_adjusted, p_fdr: p adjusted by Holm and by Benjamini & Hochberg; None for questions.
        verdict: that of `decide`, by p_adjusted, or by p for questions; "smaller here" by the interval shown.
          "not run" if no seed has both numbers: a side has no members, lacks the number, or is not a cell of
          the study.
        seeds_needed, images_needed: `Estimate.needed` for the paper's difference if the verdict is
          "undecided".

    Raises:
      DropbnError: an unknown metric.
    """
    claims, of_arg = list(claims), {cell.arg: cell for cell in cells}
    sides = [(of_arg.get(claim.more), of_arg.get(claim.less)) for claim in claims]
    found = []
    for claim, (more, less) in zip(claims, sides, strict=True):
        differences = paired(more, less, claim.metric, claim.less_metric)
        found.append(estimate(differences) if len(differences) else None)
    tests = [_test(claim, *pair) if claim.sign else None for claim, pair in zip(claims, sides, strict=True)]
    family = {test: one.p() for test, one in zip(tests, found, strict=True) if test and one}
    adjusted = _adjusted({test: p for test, p in family.items() if p is not None})
    return [
        _row(claim, one, level, *adjusted.get(test, (None, None)))
        for claim, test, one in zip(claims, tests, found, strict=True)
    ]


def _test(claim, more, less):
    """A key that is equal for two claims that compare the same numbers."""

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


def _row(claim, found, level, p_adjusted, p_fdr):
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
    """seed -> the number, for the members that have it."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    return cell.values(metric) if cell else {}


def _correct(cell, metric, seeds):
    """Which images each seed has right; () if its member does not record it."""
    found = {one.seed: one.correct.get(METRICS[metric].images, ()) for one in cell.members} if cell else {}
    return [found[seed] for seed in seeds]
