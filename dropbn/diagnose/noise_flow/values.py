"""Descriptions of arrays: which noises they carry, and what has happened to each."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import numpy as np


class Way(enum.IntEnum):
    """How a noise reaches a BN; the smaller, the more harmful."""

    DIRECT = 0
    WEIGHTS = 1
    SKIP = 2


@dataclasses.dataclass(frozen=True)
class Path:
    """What has happened to a noise between its draw and an array.

    Attributes:
      way: through nothing that mixes channels, through weights, or into a sum with a skip that is free of it.
      weights: names of the weight layers on the path.
      degree: 1 if the array is what it would be without the noise, times m and plus n; None otherwise.
      is_positive: m >= 0.
      is_factor: the noise multiplies, and E[m] = 1; nothing is added.
      mean, variance: moments of the array that m multiplied last, averaged over channels; None if unknown.
      channels: which channels carry the noise, a bool array; None for all. Concatenation leaves some free.
      added: the variance that the noise adds to each channel, once it has passed weights or a selection; None
        if unknown.
      is_whole: whether it changes the whole array, and not only what a selection takes of it.
      partial: the variance that it adds to an array of which it changes a part, averaged over channels; None
        if unknown.
    """

    way: Way = Way.DIRECT
    weights: tuple[str, ...] = ()
    degree: int | None = 1
    is_positive: bool = True
    is_factor: bool = True
    mean: float | None = None
    variance: float | None = None
    channels: Any = None
    added: Any = None
    is_whole: bool = True
    partial: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """An array as m * base + n; see `dropbn.diagnose.noise_flow.forms`.

    Attributes:
      base: a number of its own for every base.
      label: what computed the base, noise aside: the same in training as in test mode.
      m, n: `expressions.Expression`s.
      gauss: that of the base; see `Value`.
    """

    base: int
    label: Any
    m: Any
    n: Any
    gauss: Any = None


@dataclasses.dataclass(frozen=True)
class Value:
    """Description of an array.

    Attributes:
      data: whether it depends on the model's inputs.
      paths: noise -> its `Path` to this array.
      ancestors: every noise on which it depends, also through BNs.
      gauss: the array without noise, as a function of the Gaussian output of a BN, (nodes, channels or 1).
      source: that BN.
      constant: its value, if it is known and does not depend on data.
      name: the parameter that it is, or was before it was reshaped.
      origin: what computed it last: "weights", "norm", "pool" (a mean over positions) or "".
      bias: the bias that was added right after weights.
      drawn: the `expressions.Expression` of a value that is drawn, or that is a key.
      form: what data are, if draws are followed; the rest describes the array without what was drawn.
    """

    data: bool = False
    paths: dict = dataclasses.field(default_factory=dict)
    ancestors: frozenset = frozenset()
    gauss: Any = None
    source: str = ""
    constant: Any = None
    name: str = ""
    origin: str = ""
    bias: str = ""
    drawn: Any = None
    form: Form | None = None


def forget(path: Path) -> Path:
    """The path after an unknown operation."""
    return dataclasses.replace(path, degree=None, channels=None, added=None)


def worse(a: Path, b: Path) -> Path:
    """The more harmful of two paths of one noise; what they do not share is forgotten."""
    first, second = (a, b) if a.way <= b.way else (b, a)
    return first if _same(first, second) else forget(first)


def _same(a, b):
    return (a.way, a.degree) == (b.way, b.degree) and a.added is b.added and a.channels is b.channels


def union(values: list[Value]) -> dict[str, Path]:
    """The noises of several arrays; if several carry one noise, its more harmful path."""
    merged: dict[str, Path] = {}
    for value in values:
        for noise, path in value.paths.items():
            merged[noise] = worse(merged[noise], path) if noise in merged else path
    return merged


def ancestors(values: list[Value]) -> frozenset:
    """Every noise on which one of the arrays depends."""
    return frozenset().union(*(value.ancestors for value in values))


# Prefix of a noise that was drawn in an earlier step of a loop.
EARLIER = "earlier "


def base(noise: str) -> str:
    """The noise's name in the model."""
    return noise.removeprefix(EARLIER)


def renamed(value: Value, rename: Callable[[str], str]) -> Value:
    """The value with its noises renamed; if two get the same name, the more harmful path stays."""
    paths: dict[str, Path] = {}
    for noise, path in value.paths.items():
        name = rename(noise)
        paths[name] = worse(paths[name], path) if name in paths else path
    return dataclasses.replace(value, paths=paths, ancestors=frozenset(map(rename, value.ancestors)))


def join(a: Value, b: Value) -> Value:
    """One description that holds for either of two arrays."""
    if a is b:
        return a
    same_gauss = a.gauss is not None and b.gauss is not None and np.array_equal(a.gauss, b.gauss)
    return Value(
        a.data or b.data,
        union([a, b]),
        a.ancestors | b.ancestors,
        a.gauss if same_gauss else None,
        a.source if same_gauss and a.source == b.source else "",
        None,
        a.name if a.name == b.name else "",
        a.origin if a.origin == b.origin else "",
        drawn=a.drawn or b.drawn,
    )


def signature(value: Value) -> tuple:
    """The part of a description that has settled once a loop need not run again."""
    paths = {noise: (path.way, path.degree, len(path.weights)) for noise, path in value.paths.items()}
    known = value.gauss is None, value.drawn is None
    return value.data, paths, value.ancestors, known, value.name, value.origin
