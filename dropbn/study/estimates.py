"""A mean over seeds, or over seeds and test images: its interval, p and power follow from one variance."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dropbn.errors import DropbnError


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
