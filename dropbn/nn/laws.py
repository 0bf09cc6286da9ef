"""The noises as plain mathematics: `y = x * m` with `E[m] = 1` and `Var[m] = s2`.

=================  =======================  =================
law                m                        s2 = Var[m]
=================  =======================  =================
`Dropout`          Bernoulli(keep) / keep   rate / (1 - rate)
`DropBlock`        the same, in blocks      rate / (1 - rate)
`GaussianDropout`  N(1, s2)                 rate / (1 - rate)
`Uout`             1 + U(-beta, beta)       beta^2 / 3
=================  =======================  =================

The variance shift that a noise causes depends on s2 alone (`dropbn.diagnose.theory`), so noises are compared
fairly at equal s2. `of_s2` finds the amount that has a given s2:

>>> Uout.of_s2(Dropout(0.2).s2)
Uout(beta=0.8660254037844386)

Spatial dropout and stochastic depth have the law `Dropout`: a law is that of one position, and their layers
use one m for several positions. `AlphaDropout` adds noise too, y = m x + n, and has no s2. `affine` gives the
moments of every law.

The laws know no framework. An amount is a number, a traced scalar or an array; only a number is checked
against its range. `dropbn.nn.noise` makes layers of the laws.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dropbn.errors import DropbnError, shown, unknown

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


class _Law:
    """y = m x with E[m] = 1, unless a subclass has an `affine` of its own. Its first field is the amount."""

    s2: Real

    @property
    def amount(self) -> Real:
        """The rate or the beta."""
        return getattr(self, dataclasses.fields(self)[0].name)  # type: ignore[arg-type]

    @property
    def is_identity(self) -> bool:
        """Whether it is known now to change nothing."""
        return is_number(self.amount) and self.amount == 0

    @property
    def affine(self) -> Affine:
        """The moments of m and n."""
        return Affine(var_m=self.s2)


@dataclasses.dataclass(frozen=True)
class Dropout(_Law):
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
    def keep(self) -> Real:
        """Probability of keeping a unit."""
        return 1.0 - self.rate

    @property
    def s2(self) -> Real:
        """Var[m] = rate / keep; infinite at rate 1."""
        return math.inf if is_number(self.rate) and self.rate == 1 else self.rate / self.keep


@dataclasses.dataclass(frozen=True)
class DropBlock(Dropout):
    """The m of `Dropout(rate)`, dropped in blocks (Ghiasi et al. 2018).

    Every block of block_size positions along each of d dimensions that has a position in the array is dropped
    independently with probability 1 - q. A position lies in n = block_size^d of them, also at the border, and
    is kept if they all are: q^n = keep makes P(mask = 1) = keep everywhere, and E[m] = 1 and Var[m] = s2 are
    exact.

    The paper's blocks lie wholly inside, so that its borders are kept more often. Its q is an approximation,
    and it divides by the share that a batch keeps, which makes E[m] = 1 only on average over the positions
    and ties the images of a batch to each other.

    Attributes:
      rate: probability of dropping a position, in [0, 1].
      block_size: side of a block; 7 in the paper. It may exceed the array's.

    Raises:
      DropbnError: a rate outside [0, 1], a block_size below 1.
    """

    block_size: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 1:
            raise DropbnError(f"DropBlock: block_size must be 1 or more, got {self.block_size}.")

    def keep_of_block(self, dims: int = 2) -> Real:
        """q = keep^(1 / n), the probability of keeping a block of `dims` dimensions."""
        return self.keep ** (1 / self.block_size**dims)

    def covariance(self, *offset: int) -> Real:
        """Cov[m, m'] = keep^(-k / n) - 1 of two positions so far apart that k blocks hold both.

        Args:
          *offset: the distance of the two along each dimension. At 0 in all of them this is s2.
        """
        both = math.prod(max(self.block_size - abs(distance), 0) for distance in offset)
        return (1 + self.s2) ** (both / self.block_size ** len(offset)) - 1


@dataclasses.dataclass(frozen=True)
class GaussianDropout(_Law):
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
    def s2(self) -> Real:
        """Var[m] = rate / (1 - rate)."""
        return Dropout(self.rate).s2


@dataclasses.dataclass(frozen=True)
class Uout(_Law):
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
        """The law with Var[m] = s2: beta = sqrt(3 s2).

        Raises:
          DropbnError: an s2 outside [0, 1/3], which no beta has.
        """
        if is_number(s2) and not 0 <= s2 <= 1 / 3:
            raise DropbnError(f"Uout: s2 must lie in [0, 1/3], which beta = 1 has, got {s2}.")
        return cls((3 * s2) ** 0.5)

    @property
    def s2(self) -> Real:
        """Var[m] = beta^2 / 3."""
        return self.beta**2 / 3


@dataclasses.dataclass(frozen=True)
class AlphaDropout(_Law):
    """y = a (x d + alpha (1 - d)) + b with P(d = 1) = keep = 1 - rate (Klambauer et al. 2017).

    A dropped position gets alpha = -1.7581, where SELU saturates, instead of 0. The scale a and the offset b
    leave the mean 0 and the variance 1 of an input as they are. So y = m x + n, with m = a d and
    n = a alpha (1 - d) + b, is not in the family of the other laws: E[m] = a keep, and s2 is None.

    Attributes:
      rate: in [0, 1).

    Raises:
      DropbnError: a rate outside [0, 1).
    """

    rate: Real
    alpha: ClassVar[float] = -1.0507009873554805 * 1.6732632423543772  # SELU's constants.

    def __post_init__(self) -> None:
        _check(self, "[0, 1)", lambda rate: 0 <= rate < 1)

    @property
    def keep(self) -> Real:
        """P(d = 1)."""
        return 1.0 - self.rate

    @property
    def s2(self) -> None:
        """None: the variance of y is not v + s2 E[x^2]; `affine` has it."""
        return None

    @property
    def scale(self) -> Real:
        """a = (keep + alpha^2 keep rate)^(-1/2)."""
        return (self.keep * (1 + self.alpha**2 * self.rate)) ** -0.5

    @property
    def offset(self) -> Real:
        """b = -a alpha rate."""
        return -self.scale * self.alpha * self.rate

    @property
    def affine(self) -> Affine:
        """The moments of m = a d and n = a alpha (1 - d) + b; E[n] = 0."""
        drawn = self.scale**2 * self.keep * self.rate  # Var[a d]
        return Affine(self.scale * self.keep, 0.0, drawn, -self.alpha * drawn, self.alpha**2 * drawn)


Law = Dropout | GaussianDropout | Uout | AlphaDropout
KINDS: dict[str, type[Law]] = {
    "dropout": Dropout,
    "gaussian": GaussianDropout,
    "uout": Uout,
    "spatial": Dropout,
    "stochastic_depth": Dropout,
    "dropblock": DropBlock,
    "alpha": AlphaDropout,
}
# Fields of a config that one kind alone uses: field -> (the kind, the value that stands for "not given").
OWN_FIELDS = {"block_size": ("dropblock", 0), "scale_at": ("dropout", "train"), "restore": ("dropout", "")}


def of_config(config: Any) -> Law:
    """The law that a config names.

    Args:
      config: `config.model.noise`.

    Raises:
      DropbnError: an unknown kind, an amount outside its range, or one that is 0 where the field that the
        kind does not use is not; another field that the kind does not use.
    """
    if config.kind not in KINDS:
        raise unknown("noise", config.kind, KINDS)
    used, other = ("beta", "rate") if config.kind == "uout" else ("rate", "beta")
    if not config[used] and config[other]:
        raise DropbnError(
            f"model.noise.kind={config.kind!r} uses {used}, which is 0, and not {other}={config[other]}: "
            f"give model.noise.{used}, or another kind."
        )
    for field, (kind, absent) in OWN_FIELDS.items():
        if config[field] != absent and config.kind != kind:
            raise DropbnError(
                f"model.noise.kind={config.kind!r} does not use {field}={config[field]!r}: leave it "
                f"{absent!r}, or take kind={kind!r}."
            )
    law = KINDS[config.kind](config[used])
    if isinstance(law, DropBlock) and config.block_size:
        return dataclasses.replace(law, block_size=config.block_size)
    return law


def keep_of_s2(s2: Real) -> Real:
    """The keep probability of the dropout with Var[m] = s2: 1 / (1 + s2)."""
    return 1 / (1 + s2)


def is_number(value: Real) -> bool:
    """Whether a value is known now: a Python or NumPy number, not a traced array."""
    return isinstance(value, (int, float, np.number))


def _check(law: Law, interval: str, inside: Callable[[Real], bool]) -> None:
    """Raises for an amount outside of an interval, or for what is neither a number nor an array."""
    known = is_number(law.amount)
    if (known and not inside(law.amount)) or not (known or hasattr(law.amount, "dtype")):
        field, given = dataclasses.fields(law)[0], law.amount if known else shown(repr(law.amount))
        raise DropbnError(f"{type(law).__name__}: {field.name} must lie in {interval}, got {given}.")
