"""What the marks in a traced model say of its layers.

`layer_search.find` marks the outputs of noises, of batch normalizations and of other modules with running
state (`tracing.mark_p`). From its jaxpr follow the line that calls each layer, what a noise draws, and
whether running state may be that of a batch normalization.
"""

import math
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from dropbn.diagnose import tracing


class Marked(NamedTuple):
    """What the marks of one name say.

    Attributes:
      line: the line of the user's file that calls the layer first, such as "net.py:41"; "" if unknown.
      drawn: how many numbers the largest draw of a noise makes; 0 if it draws nothing, infinite if the number
        is unknown.
      per_example: whether a noise draws at most one number for each example, as drop path does.
      may_be_norm: whether running state may be that of a batch normalization: its input moves two or more
        leaves that have one number for each channel. A spectral norm, whose state follows from its weights,
        has none.
    """

    line: str = ""
    drawn: float = 0
    per_example: bool = False
    may_be_norm: bool = False


def read(jaxpr: jax.extend.core.ClosedJaxpr) -> dict[str, Marked]:
    """What is marked in a traced model, by name.

    Args:
      jaxpr: a traced model with marks (output, input) of kind "noise" and "norm", and (output, input, leaves
        after the call) of kind "state".
    """
    found: dict[str, Marked] = {}
    for eqn, behind in _marks(jaxpr.jaxpr, {*jaxpr.jaxpr.invars}):
        name, seen = eqn.params["name"], found.get(eqn.params["name"], Marked(tracing.line_of(eqn)))
        y, x, *leaves = eqn.invars
        if eqn.params["kind"] == "noise":
            drawn = max(seen.drawn, behind(y, x).drawn)
            few = 0 < drawn <= (x.aval.shape or (0,))[0] < x.aval.size
            found[name] = seen._replace(drawn=drawn, per_example=few)
        elif eqn.params["kind"] == "state":
            channels = x.aval.shape[1:] or (None,)
            moved = [v for v in leaves if v.aval.size in channels and max(v.aval.shape) == v.aval.size]
            may_be = sum(behind(leaf, x).meets for leaf in moved) > 1
            found[name] = seen._replace(may_be_norm=seen.may_be_norm or may_be)
        else:
            found[name] = seen
    return found


def inputs_of_output(jaxpr: jax.extend.core.ClosedJaxpr) -> set[int]:
    """The numbers of the inputs on which an output depends, or may depend through a nested jaxpr."""
    needed = {var for var in jaxpr.jaxpr.outvars if not isinstance(var, jax.extend.core.Literal)}
    for eqn in reversed(jaxpr.jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            operands = eqn.invars[:1] if eqn.primitive is tracing.mark_p else eqn.invars
            needed |= {var for var in operands if not isinstance(var, jax.extend.core.Literal)}
    return {number for number, var in enumerate(jaxpr.jaxpr.invars) if var in needed}


def coarsest(jaxpr: jax.extend.core.ClosedJaxpr) -> float:
    """The largest machine epsilon of the floats that a traced model computes."""
    values = (var.aval for eqn in _equations(jaxpr.jaxpr) for var in eqn.outvars)
    kinds = {value.dtype for value in values if hasattr(value, "dtype")}
    floats = (kind for kind in kinds if jnp.issubdtype(kind, jnp.floating))
    return max((float(jnp.finfo(kind).eps) for kind in floats), default=0.0)


class _Behind(NamedTuple):
    """What lies between a value and an earlier one: `Marked.drawn`, and whether they meet at all."""

    drawn: float
    meets: bool


def _marks(jaxpr: Any, outermost: Set = frozenset()) -> Iterator[tuple[Any, Any]]:
    """(mark, function from a value and an earlier one to `_Behind`) for every mark, nested ones included.

    An input of a nested jaxpr may bring what was drawn outside, unless it is a key; the `outermost` do not.
    """
    makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}

    def behind(late, early):
        todo, seen, drawn, meets = [late], set(), 0.0, False
        while todo:
            var = todo.pop()
            if var is early:
                meets = True
                continue
            if isinstance(var, jax.extend.core.Literal) or var in seen:
                continue
            seen.add(var)
            if var in makers:
                todo += makers[var].invars
                drawn = max(drawn, _drawn(makers[var]))
            elif not (var in outermost or var in jaxpr.constvars or _is_key(var)):
                drawn = math.inf
        return _Behind(drawn, meets)

    for eqn in jaxpr.eqns:
        if eqn.primitive is tracing.mark_p:
            yield eqn, behind
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _marks(inner)


def _is_key(var):
    return jax.dtypes.issubdtype(var.aval.dtype, jax.dtypes.prng_key)


def _drawn(eqn):
    """How many numbers an equation makes from keys, or by a generator of its own within."""
    if "callback" in eqn.primitive.name:
        return math.inf
    size = max((var.aval.size for var in eqn.outvars if not _is_key(var)), default=0)
    others = [var.aval.size for var in eqn.invars if not _is_key(var)]
    # One that takes an array as large as its output may be more than a draw: the draw is within.
    if len(others) < len(eqn.invars) and max([0, *others]) < size:
        return size
    inner = (each for jaxpr in jax.extend.core.jaxprs_in_params(eqn.params) for each in jaxpr.eqns)
    return max([size if eqn.primitive.name in tracing.DRAWING else 0, *map(_drawn, inner)])


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)
