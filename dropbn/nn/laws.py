"""The noises as plain mathematics: `y = x * m` with `E[m] = 1` and `Var[m] = s2`.

=================  =======================  =================
law                m                        s2 = Var[m]
=================  =======================  =================
`Dropout`          Bernoulli(keep) / keep   rate / (1 - rate)
`GaussianDropout`  N(1, s2)                 rate / (1 - rate)
`Uout`             1 + U(-beta, beta)       beta^2 / 3
=================  =======================  =================

The variance shift that a noise causes depends on s2 alone (`dropbn.diagnose.theory`), so noises are compared
fairly at equal s2. `of_s2` finds the amount that has a given s2:

>>> Uout.of_s2(Dropout(0.2).s2)
Uout(beta=0.8660254037844386)

The laws know no framework. An amount is a number, a traced scalar or an array; only a number is checked
against its range. `dropbn.nn.noise` makes layers of the laws.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dropbn.errors import DropbnError, unknown

Real = Any  # A number, a traced scalar or an array.


class Affine(NamedTuple):
    """Moments of an affine noise y = m x + n whose m and n are drawn independently of x.

    Attributes:
      m, n: E[m] and E[n].
      var_m, cov, var_n: Var[m], Cov[m, n] and Var[n].
    """

    m: Real = 1.0
    n: Real = 0.0
    var_m: Real = 0.0
    cov: Real = 0.0
    var_n: Real = 0.0

    def train_variance(self, mean: Real, variance: Real) -> Real:
        """Var[y] = Var[m] (v + c^2) + 2 Cov[m, n] c + Var[n] + E[m]^2 v for an x of mean c and variance v."""
        drawn = self.var_m * (variance + mean**2) + 2 * self.cov * mean + self.var_n
        return drawn + self.m**2 * variance


class _Multiplicative:
    """y = m x with E[m] = 1. A subclass defines s2."""

    s2: Real

    @property
    def affine(self) -> Affine:
        """The moments of m, with n = 0."""
        return Affine(var_m=self.s2)


@dataclasses.dataclass(frozen=True)
class Dropout(_Multiplicative):
    """m = mask / keep with P(mask = 1) = keep = 1 - rate (Srivastava et al. 2014).

    Attributes:
      rate: probability of dropping a unit, in [0, 1].

    Raises:
      DropbnError: a rate outside [0, 1].
    """

    rate: Real

    def __post_init__(self) -> None:
        _check(self, "[0, 1]", lambda rate: 0 <= rate <= 1)

    @classmethod
    def of_s2(cls, s2: Real) -> "Dropout":
        """The law with Var[m] = s2; rate 1 where s2 is infinite."""
        return cls(1 - keep_of_s2(s2))

    @property
    def amount(self) -> Real:
        return self.rate

    @property
    def keep(self) -> Real:
        """Probability of keeping a unit."""
        return 1.0 - self.rate

    @property
    def s2(self) -> Real:
        """Var[m] = rate / keep; infinite at rate 1."""
        return math.inf if is_number(self.rate) and self.rate == 1 else self.rate / self.keep


@dataclasses.dataclass(frozen=True)
class GaussianDropout(_Multiplicative):
    """m ~ N(1, s2) with the s2 of `Dropout(rate)` (Srivastava et al. 2014, section 10).

    Attributes:
      rate: in [0, 1).

    Raises:
      DropbnError: a rate outside [0, 1).
    """

    rate: Real

    def __post_init__(self) -> None:
        _check(self, "[0, 1)", lambda rate: 0 <= rate < 1)

    @classmethod
    def of_s2(cls, s2: Real) -> "GaussianDropout":
        """The law with Var[m] = s2, which must be finite."""
        return cls(Dropout.of_s2(s2).rate)

    @property
    def amount(self) -> Real:
        return self.rate

    @property
    def s2(self) -> Real:
        """Var[m] = rate / (1 - rate)."""
        return Dropout(self.rate).s2


@dataclasses.dataclass(frozen=True)
class Uout(_Multiplicative):
    """m = 1 + r with r ~ U(-beta, beta) (Li et al. 2018, eq. 15).

    Attributes:
      beta: half width of the uniform noise, in [0, 1].

    Raises:
      DropbnError: a beta outside [0, 1].
    """

    beta: Real

    def __post_init__(self) -> None:
        _check(self, "[0, 1]", lambda beta: 0 <= beta <= 1)

    @classmethod
    def of_s2(cls, s2: Real) -> "Uout":
        """The law with Var[m] = s2, at most 1/3: beta = sqrt(3 s2)."""
        return cls((3 * s2) ** 0.5)

    @property
    def amount(self) -> Real:
        return self.beta

    @property
    def s2(self) -> Real:
        """Var[m] = beta^2 / 3."""
        return self.beta**2 / 3


Law = Dropout | GaussianDropout | Uout
KINDS: dict[str, type[Law]] = {"dropout": Dropout, "gaussian": GaussianDropout, "uout": Uout}


def of_config(config: Any) -> Law:
    """The law that a config names.

    Args:
      config: has `kind`, `rate` and `beta` (`config.model.noise`).

    Raises:
      DropbnError: an unknown kind, an amount outside its range, or one that is 0 where the field that the
        kind does not use is not.
    """
    if config.kind not in KINDS:
        raise unknown("noise", config.kind, KINDS)
    used, other = ("beta", "rate") if config.kind == "uout" else ("rate", "beta")
    if not config[used] and config[other]:
        raise DropbnError(
            f"model.noise.kind={config.kind!r} uses {used}, which is 0, and not {other}={config[other]}: "
            f"give model.noise.{used}, or another kind."
        )
    return KINDS[config.kind](config[used])


def keep_of_s2(s2: Real) -> Real:
    """The keep probability of the dropout with Var[m] = s2: 1 / (1 + s2)."""
    return 1 / (1 + s2)


def is_number(value: Real) -> bool:
    """Whether a value is known now: a Python or NumPy number, not a traced array."""
    return isinstance(value, (int, float, np.number))


def _check(law: Law, interval: str, inside: Callable[[Real], bool]) -> None:
    if is_number(law.amount) and not inside(law.amount):
        (field,) = dataclasses.fields(law)
        raise DropbnError(f"{type(law).__name__}: {field.name} must lie in {interval}, got {law.amount}.")
