"""The random draws of a model that are not those of a registered noise, followed to what they reach.

A draw is an equation of the traced model that makes random numbers from a key among the `rngs` of the call. A
constant key, as in random features, makes none. What a draw does to the data is not known here; where it
stands, and which batch normalizations and outputs depend on it, is.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core

from dropbn.diagnose import tracing

# Running state that is marked is followed as a draw of this name, and the module's.
STATE = "state of "


class _Depends(NamedTuple):
    """What a value depends on.

    Attributes:
      key: whether it depends on a key of the call.
      draws: the draws, by where they stand, that reach it without a batch normalization between.
      behind: those that reach it through one.
    """

    key: bool = False
    draws: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()


_NOTHING = _Depends()


def reached(jaxpr: jax.extend.core.ClosedJaxpr, is_key: Sequence[bool]) -> dict[str, list[str]]:
    """The draws that reach an output or a marked batch normalization, and the first of those they reach.

    Args:
      jaxpr: a traced model with `mark_p` on the outputs of registered noises ("noise"), which end a draw, and
        of batch normalizations ("norm").
      is_key: which of its inputs are random keys.

    Returns:
      {where a draw stands, as "module/path file.py:line": names of the batch normalizations}.
    """
    follower = _Follower()
    outputs = follower.run(jaxpr, [_Depends(key=key) for key in is_key])
    found: dict[str, list[str]] = {
        where: [] for output in outputs for where in sorted(output.draws | output.behind)
    }
    for where, norm in follower.met:
        norms = found.setdefault(where, [])
        norms.extend({norm} - {*norms})
    return found


class _Follower:
    def __init__(self):
        self.met = {}  # (where, norm) of draws that reach a batch normalization, in the order of the trace
        self.calls = []  # the equations around the current one

    def run(self, jaxpr: Any, inputs: list[_Depends]) -> list[_Depends]:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom):
            return _NOTHING if isinstance(atom, jax.extend.core.Literal) else known.get(atom, _NOTHING)

        for eqn in jaxpr.eqns:
            self.calls.append(eqn)
            known |= dict(zip(eqn.outvars, self.step(eqn, [*map(read, eqn.invars)]), strict=True))
            self.calls.pop()
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn, values):
        name, params = eqn.primitive.name, eqn.params
        everything = functools.reduce(_union, values, _NOTHING)
        if name == "dropbn_mark" and params["kind"] == "noise":
            return [values[1]]
        if name == "dropbn_mark" and params["kind"] == "state":
            return [values[0]._replace(draws=values[0].draws | {STATE + params["name"]})]
        if name == "dropbn_mark":
            self.met |= dict.fromkeys((where, params["name"]) for where in sorted(values[1].draws))
            y = values[0]
            return [_Depends(y.key, y.draws - values[1].draws, y.behind | values[1].draws)]
        if name in tracing.DRAWING and everything.key:
            drawn = everything.draws | {where(self.calls)}
            return [everything._replace(draws=drawn)] * len(eqn.outvars)
        if name in ("scan", "while"):
            return self.loop(eqn, values)
        if name == "cond":
            branches = [self.run(branch, values[1:]) for branch in params["branches"]]
            return [
                functools.reduce(_union, outputs, values[0]._replace(key=False))
                for outputs in zip(*branches, strict=True)
            ]
        for inner in jax.extend.core.jaxprs_in_params(params):
            if len(inner.invars) == len(values) and len(inner.outvars) == len(eqn.outvars):
                return self.run(inner, values)
        return [everything] * len(eqn.outvars)

    def loop(self, eqn, values):
        """The outputs of a loop, whose body runs until what its carry depends on no longer changes."""
        body, *parts = tracing.loop_operands(eqn)
        consts, carry, stacked = (values[part] for part in parts)
        condition = functools.reduce(_union, values[: parts[0].start or 0], _NOTHING)._replace(key=False)
        while True:
            outputs = self.run(body, [*consts, *carry, *stacked])
            joined = [_union(*pair) for pair in zip(carry, outputs, strict=False)]
            if joined == carry:
                return [_union(output, condition) for output in [*joined, *outputs[len(carry) :]]]
            carry = joined


def where(calls: list) -> str:
    """Where the last of some nested equations stands: the module's path and the line of the user's file."""
    around = []
    for eqn in calls:
        around.append(eqn)
        # JAX traces its own functions once, perhaps for another caller.
        if str(eqn.params.get("name", "")).startswith("_"):
            break
    line = tracing.line_of(*reversed(around))
    return " ".join(filter(None, (tracing.path_of(around), line))) or "?"


def _union(a, b):
    return _Depends(a.key or b.key, a.draws | b.draws, a.behind | b.behind)
