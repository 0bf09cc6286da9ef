"""The mean over seeds, or over seeds and test images: one variance gives its interval, p and power."""

import bisect
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dropbn.errors import DropbnError


class Estimate(NamedTuple):
    """A mean over seeds, or over seeds and images, with the parts of its variance.

    Attributes:
      mean: the mean of all values.
      seeds: the number of seeds.
      images: the number of images; 1 for values over seeds alone.
      of_seeds: variance of the seeds' means / seeds, which is the variance of the mean on these images.
      of_images: variance of the images' means / images, which is the variance of the mean with these seeds;
        0 for values over seeds alone.
      of_rest: mean square of what neither seed nor image explains / (seeds * images); 0 for values over seeds
        alone.
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
        from scipy import stats  # Imported late, so that commands start without it.

        if not 0 < level < 1:
            raise DropbnError(f"The level of an interval is between 0 and 1, got {level}.")
        if self.seeds < 2:
            return self.mean, None
        variance, freedom = self.variance()
        return self.mean, float(stats.t.ppf((1 + level) / 2, freedom) * variance**0.5)

    def p(self, value: float = 0.0) -> float | None:
        """The two-sided p of the mean being `value`; None with fewer than two seeds or without finite values.

        Accuracies are multiples of 1 / images, so a few seeds may differ by exactly the same amount. A
        variance of 0 would then decide from two seeds. Equal values are therefore judged by the exact sign
        test, which does not depend on their spread: p = 2^(1 - seeds).
        """
        from scipy import stats

        if self.seeds < 2 or not math.isfinite(self.of_seeds):
            return None
        variance, freedom = self.variance()
        if variance**0.5 <= 1e-9 * abs(self.mean):  # All values are equal up to rounding.
            return 1.0 if self.mean == value else 2.0 ** (1 - self.seeds)
        return float(2 * stats.t.sf(abs(self.mean - value) / variance**0.5, freedom))

    def at(self, seeds: int, images: int) -> "Estimate":
        """The estimate with other numbers of seeds and images, if their spread stays the same."""
        fewer_seeds, fewer_images = self.seeds / seeds, self.images / images
        rest = self.of_rest * fewer_seeds * fewer_images
        of_seeds = max(self.of_seeds - self.of_rest, 0) * fewer_seeds + rest
        of_images = max(self.of_images - self.of_rest, 0) * fewer_images + rest
        return Estimate(
            self.mean, seeds, images, of_seeds, of_images, rest, self.image_freedom / fewer_images
        )

    def power(self, difference: float, level: float = 0.95) -> float:
        """The probability that a true mean of this size is told from 0, by the noncentral t distribution."""
        from scipy import stats

        variance, freedom = self.variance()
        bound = stats.t.ppf((1 + level) / 2, freedom)
        return float(stats.nct.sf(bound, freedom, abs(difference) / variance**0.5))

    def needed(self, difference: float, level: float = 0.95, power: float = 0.8) -> tuple[int | None, ...]:
        """How many seeds, or else images, would tell a mean of this size from 0 at the spread seen.

        Returns:
          (seeds, None): the smallest number of seeds that is enough on these images.
          (None, images): no number of seeds is enough, because the images' share of the variance alone is too
            large; with this many images enough seeds would be.
          (None, None): there are fewer than two seeds, there is no spread, or neither is enough.
        """
        if self.seeds < 2 or not self.variance()[0] > 0:
            return None, None
        seeds = _least(range(2, _MANY), lambda n: self.at(n, self.images).power(difference, level) >= power)
        if seeds or self.images == 1:
            return seeds, None
        return None, _least(range(2, _MANY), lambda n: self.at(_MANY, n).power(difference, level) >= power)


_MANY = 10**8  # more seeds or images than anybody has


def _least(numbers, is_enough):
    """The first of ascending numbers that is enough; None if none of them is."""
    found = bisect.bisect_left(numbers, True, key=is_enough)
    return numbers[found] if found < len(numbers) else None


def estimate(values: ArrayLike) -> Estimate:
    """The mean over seeds, or over seeds and images, and its variance.

    Over seeds alone this is Student's t: the variance is s^2 / S with S - 1 degrees of freedom.

    Over S seeds and I images, x[s, i] = mean + seed[s] + image[i] + rest[s, i], where the three effects are
    random with variances V_s, V_i and V_r. The variance of the mean is V_s / S + V_i / I + V_r / (S I), and

        A + B - R,   A = var_s(mean_i x) / S,   B = var_i(mean_s x) / I,   R = mean square of the rest / (S I)

    estimates it without bias, because A and B both contain V_r / (S I) (Cornfield & Tukey 1956; for clusters
    of two kinds Cameron, Gelbach & Miller 2011; Owen's pigeonhole bootstrap, 2007, has the same design). The
    estimate is never taken below A or B, which would mean that V_i or V_s is negative.

    The degrees of freedom are Satterthwaite's (1946): (A + B - R)^2 / (A^2 / f_s + B^2 / f_i + R^2 / (f_s
    f_i)), or f_s or f_i if A or B stands alone; f_s = S - 1. Two cells differ on few images, so the images'
    means are far from normal. The variance of their sample variance is sigma^4 (2 / (I - 1) + k / I), where k
    is the excess kurtosis (Kenney & Keeping 1951, p. 164). So f_i is 2 over that bracket, which is I - 1 for
    k = 0.

    In simulations (tests/study/test_estimates.py) with S = 5 and 20 and I = 360, 800 and 10,000, and with
    S = 3 and I = 360, the 95 % interval holds the truth in 93.4 to 97.4 % of the draws if the cells differ in
    accuracy or on at least 60 images. If they are equally accurate and differ on 5 to 60 images, it is too
    wide: it holds the truth in 96.6 to 99.6 %. With S = 3 and I = 10,000 it may hold the truth too seldom (90
    to 92.5 % in four of five designs, 400 draws each). With f_i = I - 1 the smallest share is 91 %, and over
    seeds alone it is 41 %.

    Args:
      values: one value for each seed, (S,), or for each seed and image, (S, I); at least one seed.

    Raises:
      DropbnError: there are no values, or values of only one image.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size or values.shape[1:] == (1,):
        raise DropbnError(
            "An interval needs one value for each seed, or for each seed and image with at least two images; "
            f"got an array of shape {values.shape}."
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


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float | None]:
    """The mean of `estimate` and the half width of its confidence interval.

    The interval holds the true mean in a share `level` of all samples of normal values.

    Args:
      values: one value for each seed, or for each seed and image.
      level: the confidence level, between 0 and 1.

    Returns:
      (mean, half width); the half width is None with fewer than two seeds.

    Raises:
      DropbnError: there are no values, or the level is not between 0 and 1.
    """
    return estimate(values).interval(level)
