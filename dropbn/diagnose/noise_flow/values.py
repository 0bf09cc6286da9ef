"""Descriptions of arrays: which noises they carry, and what has happened to those."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import numpy as np


class Way(enum.IntEnum):
    """The kind of a path from a noise to a BN, the more harmful the smaller."""

    DIRECT = 0
    WEIGHTS = 1
    SKIP = 2


@dataclasses.dataclass(frozen=True)
class Flow:
    """What has happened to a noise on its way.

    Attributes:
      way: through nothing that mixes channels, through weights, or into a skip that is free of it.
      weights: names of the weight layers on the way.
      degree: 1 where the array is what it would be without the noise, times m; None otherwise.
      is_positive: m >= 0.
      mean, variance: of what m has multiplied last, averaged over channels; None where they are not known.
      channels: of these the noise is (a bool array), None for all; concatenation leaves some free of it.
      added: the variance that the noise adds to each channel, once it has gone through weights; None where
        that is not known.
    """

    way: Way = Way.DIRECT
    weights: tuple[str, ...] = ()
    degree: int | None = 1
    is_positive: bool = True
    mean: float | None = None
    variance: float | None = None
    channels: Any = None
    added: Any = None


@dataclasses.dataclass(frozen=True)
class Value:
    """Description of an array.

    Attributes:
      data: whether it depends on the model's inputs.
      flows: by noise.
      ancestors: every noise that it depends on at all, through BNs too.
      gauss: the array, without noise, as a function of the Gaussian that a BN puts out, (nodes, channels or
        1).
      source: the BN of `gauss`.
      constant: its value, where it is known and not data.
      name: of the parameter that it is, or was before it was reshaped.
      origin: what it was computed by last: "weights", "norm", "pool" (a mean over positions) or "".
      bias: the bias that was added to weights right before.
    """

    data: bool = False
    flows: dict = dataclasses.field(default_factory=dict)
    ancestors: frozenset = frozenset()
    gauss: Any = None
    source: str = ""
    constant: Any = None
    name: str = ""
    origin: str = ""
    bias: str = ""


def forget(flow: Flow) -> Flow:
    """The flow after something of which nothing is known."""
    return dataclasses.replace(flow, degree=None, channels=None, added=None)


def worse(a: Flow, b: Flow) -> Flow:
    """Of two flows of one noise the more harmful, with what is known of both."""
    first, second = (a, b) if a.way <= b.way else (b, a)
    return first if _same(first, second) else forget(first)


def _same(a, b):
    return (a.way, a.degree) == (b.way, b.degree) and a.added is b.added and a.channels is b.channels


def union(values: list[Value]) -> dict[str, Flow]:
    """The noises of several arrays; of one that several carry the more harmful flow."""
    merged = {}
    for value in values:
        for noise, flow in value.flows.items():
            merged[noise] = worse(merged[noise], flow) if noise in merged else flow
    return merged


def ancestors(values: list[Value]) -> frozenset:
    """Every noise that one of the arrays depends on."""
    return frozenset().union(*(value.ancestors for value in values))


# Begins the name of a noise that was drawn in an earlier step of a loop.
EARLIER = "earlier "


def base(noise: str) -> str:
    """A noise's own name."""
    return noise.removeprefix(EARLIER)


def renamed(value: Value, rename: Callable[[str], str]) -> Value:
    """The value with its noises renamed; where two get one name, the more harmful flow stays."""
    flows = {}
    for noise, flow in value.flows.items():
        name = rename(noise)
        flows[name] = worse(flows[name], flow) if name in flows else flow
    return dataclasses.replace(value, flows=flows, ancestors=frozenset(map(rename, value.ancestors)))


def join(a: Value, b: Value) -> Value:
    """One description for either of two arrays."""
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
    )


def signature(value: Value):
    """What must not change any more for a loop to be done."""
    flows = {noise: (flow.way, flow.degree, len(flow.weights)) for noise, flow in value.flows.items()}
    return value.data, flows, value.ancestors, value.gauss is None, value.name, value.origin
