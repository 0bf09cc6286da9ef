"""The statistics of a study: what a paper claims of two cells, and what our seeds say to it.

A claim is that one number is larger than another ("P5 above no dropout"). It is judged by the paired
differences over seeds: a seed fixes the initial weights and the order of the data in both cells, so that the
difference of one seed has less noise than that of two means. Accuracies also depend on which images were
drawn for the test, so their differences are paired by seed and by image.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dropbn.errors import DropbnError, unknown
from dropbn.study.finished_runs import Cell

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


class Estimate(NamedTuple):
    """A mean over seeds, or over seeds and images, with what its variance is made of.

    Attributes:
      mean: of all values.
      seeds: their number.
      images: their number; 1 for values over seeds alone.
      of_seeds: variance of the seeds' means / seeds: the variance of the mean on these images.
      of_images: variance of the images' means / images: that of these seeds; 0 for values over seeds alone.
      of_rest: mean square of what neither seed nor image explains / (seeds * images); 0 likewise.
      image_freedom: degrees of freedom of `of_images`.
    """

    mean: float
    seeds: int
    images: int = 1
    of_seeds: float = math.nan
    of_images: float = 0.0
    of_rest: float = 0.0
    image_freedom: float = math.inf

    def variance(self) -> tuple[float, float]:
        """The variance of the mean and its degrees of freedom; see `estimate`."""
        freedom, total = self.seeds - 1, self.of_seeds + self.of_images - self.of_rest
        shares = (self.of_seeds, freedom), (self.of_images, self.image_freedom)
        if total < max(self.of_seeds, self.of_images):
            return max(shares)
        parts = *shares, (self.of_rest, freedom * self.image_freedom)
        spread = sum(part**2 / of_part for part, of_part in parts if part)
        return total, total**2 / spread if spread else freedom

    def interval(self, level: float = 0.95) -> tuple[float, float | None]:
        """(mean, half width of its confidence interval); the half width is None with fewer than two seeds."""
        from scipy import stats  # Here, because the configs read this file and commands start without it.

        if not 0 < level < 1:
            raise DropbnError(f"The level of an interval is between 0 and 1, got {level}.")
        if self.seeds < 2:
            return self.mean, None
        variance, freedom = self.variance()
        return self.mean, float(stats.t.ppf((1 + level) / 2, freedom) * variance**0.5)

    def p(self, value: float = 0.0) -> float | None:
        """The two-sided p that the mean is a value; None with fewer than two seeds or what is no number.

        Accuracies are multiples of 1 / images, so a few seeds may differ by exactly the same amount; a
        variance of 0 would then decide from two seeds. Equal values are judged by the exact sign test
        instead, which asks nothing of their spread: p = 2^(1 - seeds).
        """
        from scipy import stats

        if self.seeds < 2 or not math.isfinite(self.of_seeds):
            return None
        variance, freedom = self.variance()
        if variance**0.5 <= 1e-9 * abs(self.mean):  # But for rounding, all are equal.
            return 1.0 if self.mean == value else 2.0 ** (1 - self.seeds)
        return float(2 * stats.t.sf(abs(self.mean - value) / variance**0.5, freedom))

    def at(self, seeds: int, images: int) -> "Estimate":
        """What it would be with other numbers of seeds and images of the same spread."""
        fewer_seeds, fewer_images = self.seeds / seeds, self.images / images
        rest = self.of_rest * fewer_seeds * fewer_images
        of_seeds = max(self.of_seeds - self.of_rest, 0) * fewer_seeds + rest
        of_images = max(self.of_images - self.of_rest, 0) * fewer_images + rest
        return Estimate(
            self.mean, seeds, images, of_seeds, of_images, rest, self.image_freedom / fewer_images
        )

    def power(self, difference: float, level: float = 0.95) -> float:
        """The probability that a mean of this size is told from 0, by the noncentral t distribution."""
        from scipy import stats

        variance, freedom = self.variance()
        bound = stats.t.ppf((1 + level) / 2, freedom)
        return float(stats.nct.sf(bound, freedom, abs(difference) / variance**0.5))

    def needed(self, difference: float, level: float = 0.95, power: float = 0.8) -> tuple[int | None, ...]:
        """How many seeds, or else images, would tell a mean of this size from 0, at the spread seen.

        Returns:
          (seeds, None): the least number of seeds on these images.
          (None, images): where no number of seeds is enough, because the images' share alone is too large:
            the least number of images on which enough seeds would tell.
          (None, None): with fewer than two seeds, without any spread, or where neither is enough.
        """
        if self.seeds < 2 or not self.variance()[0] > 0:
            return None, None
        seeds = _least(range(2, _MANY), lambda n: self.at(n, self.images).power(difference, level) >= power)
        if seeds or self.images == 1:
            return seeds, None
        return None, _least(range(2, _MANY), lambda n: self.at(_MANY, n).power(difference, level) >= power)


_MANY = 10**8  # seeds or images, of which nobody has more


def _least(numbers, is_enough):
    """The first of ascending numbers that is enough, None where none is."""
    found = bisect.bisect_left(numbers, True, key=is_enough)
    return numbers[found] if found < len(numbers) else None


def estimate(values: Sequence) -> Estimate:
    """The mean over seeds, or over seeds and images, and its variance.

    Over seeds, this is Student's t: variance s^2 / S with S - 1 degrees of freedom.

    Over S seeds and I images, x[s, i] = mean + seed[s] + image[i] + rest[s, i], each drawn at random with
    variances V_s, V_i and V_r. The variance of the mean is V_s / S + V_i / I + V_r / (S I), and

        A + B - R,   A = var_s(mean_i x) / S,   B = var_i(mean_s x) / I,   R = mean square of the rest / (S I)

    estimates it without bias, because A and B both hold V_r / (S I): Cornfield & Tukey (1956); for clusters
    of two kinds Cameron, Gelbach & Miller (2011); Owen's pigeonhole bootstrap (2007) is of this design. It is
    not taken below A or B, which would say that V_i or V_s is negative.

    The degrees of freedom are Satterthwaite's (1946): (A + B - R)^2 / (A^2 / f_s + B^2 / f_i + R^2 / (f_s
    f_i)), and f_s or f_i where A or B stands alone; f_s = S - 1. Two cells differ on few images, so the
    images' means are far from normal: the variance of their sample variance is sigma^4 (2 / (I - 1) + k / I)
    with the excess kurtosis k (Kenney & Keeping 1951, p. 164), and f_i is 2 over that bracket, I - 1 where
    k = 0.

    Simulations of correctness (tests/study/test_claims.py) with S = 5 and 20 and I = 360, 800 and 10,000, and
    with S = 3 and I = 360: the 95 % interval holds the truth in 93.4 to 97.4 % where the cells differ on 60
    images or more or in accuracy. Where they are equally accurate and differ on 5 to 60 images, it is too
    wide: it holds the truth in 96.6 to 99.6 %. With S = 3 and I = 10,000 it may hold the truth too seldom (90
    to 92.5 % in four of five designs, 400 draws each). With f_i = I - 1 the least is 91 %, and over seeds
    alone 41 %.

    Args:
      values: one a seed, (S,), or (S, I); at least one seed.

    Raises:
      DropbnError: no values, or those of one image.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size or values.shape[1:] == (1,):
        raise DropbnError(
            f"An interval wants a value a seed, or of two images or more, got an array of {values.shape}."
        )
    seeds, mean = len(values), float(values.mean())
    if seeds < 2:
        return Estimate(mean, seeds, *values.shape[1:])
    by_seed = values.reshape(seeds, -1).mean(1)
    of_seeds = float(by_seed.var(ddof=1) / seeds)
    if values.ndim == 1:
        return Estimate(mean, seeds, of_seeds=of_seeds)
    by_image, images = values.mean(0), values.shape[1]
    rest = values - by_seed[:, None] - by_image + mean
    of_images = float(by_image.var(ddof=1) / images)
    of_rest = float((rest**2).sum() / ((seeds - 1) * (images - 1)) / values.size)
    excess = stats.kurtosis(by_image) if of_images else 0
    image_freedom = float(2 / (2 / (images - 1) + excess / images))
    return Estimate(mean, seeds, images, of_seeds, of_images, of_rest, image_freedom)


def interval(values: Sequence, level: float = 0.95) -> tuple[float, float | None]:
    """The mean and the half width of its confidence interval, by `estimate`.

    It holds the true mean in a share `level` of all samples of normal values.

    Args:
      values: one a seed, or one a seed and an image.
      level: of confidence, between 0 and 1.

    Returns:
      (mean, half width); the half width is None with fewer than two seeds.

    Raises:
      DropbnError: no values, a level outside (0, 1).
    """
    return estimate(values).interval(level)


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
