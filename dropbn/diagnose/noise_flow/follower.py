"""Noises followed through a jaxpr: an interpreter that computes descriptions instead of arrays."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Hashable
from typing import Any

import numpy as np
from jax.extend.core import Literal

from dropbn.diagnose import tracing
from dropbn.diagnose.noise_flow import arithmetic, functions, variance
from dropbn.diagnose.noise_flow.expressions import Expression
from dropbn.diagnose.noise_flow.followed import Followed
from dropbn.diagnose.noise_flow.marks import Key, Marked, Parameter
from dropbn.diagnose.noise_flow.values import (
    EARLIER,
    Path,
    Value,
    Way,
    ancestors,
    base,
    forget,
    join,
    renamed,
    signature,
    union,
    worse,
)


class Follower:
    """An interpreter of jaxprs; every method takes and returns descriptions of arrays."""

    def __init__(self, marked: Marked, probe_norms: bool = False) -> None:
        self.marked, self.probe_norms = marked, probe_norms
        self.followed = Followed(dict(marked.noises))
        self.before: dict[str, set] = collections.defaultdict(set)  # noise -> those that its input has met
        self.calls: list = []  # the equations around the current one

    def follow(self) -> Followed:
        """Runs the trace."""
        inputs = [self.given(number, each) for number, each in enumerate(self.marked.inputs)]
        self.taken("output", self.run(self.marked.jaxpr, inputs))
        return self.followed

    def given(self, number: int, given: Parameter | Key | None) -> Value:
        """The description of an input of the jaxpr."""
        if isinstance(given, Parameter):
            return functions.known(given.value, given.name)
        return Value(data=given is None)

    def run(self, jaxpr: Any, inputs: list[Value]) -> list[Value]:
        """Runs a jaxpr, closed or not."""
        consts = [functions.known(const) for const in getattr(jaxpr, "consts", ())]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(atom):
            return functions.known(atom.val) if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            self.calls.append(eqn)
            outputs = self.step(eqn, [read(atom) for atom in eqn.invars])
            self.calls.pop()
            values |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, values: list[Value]) -> list[Value]:
        """The outputs of an equation; those of a call are the outputs of the called jaxpr."""
        name, params = eqn.primitive.name, eqn.params
        if name == "dropbn_mark" and not self.marked.has(params["name"]):
            return values[:1]
        inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
        is_call = inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(values)
        return (
            self.run(inner, values) if is_call and name not in ("scan", "while") else self.apply(eqn, values)
        )

    def apply(self, eqn: Any, values: list[Value]) -> list[Value]:
        """The outputs of an equation that is no call."""
        return self.described(eqn, values)

    def taken(self, label: Hashable, values: list[Value]) -> list[Value]:
        """The values that what `label` names takes, as it takes them."""
        return values

    def fresh(self, value: Value, label: Hashable) -> Value:
        """The value, computed by what `label` names."""
        return value

    def described(self, eqn: Any, values: list[Value]) -> list[Value]:
        """The outputs of an equation without draws."""
        name, params = eqn.primitive.name, eqn.params
        if name == "dropbn_mark":
            (y, x, *_), layer = values, params["name"]
            if params["kind"] == "norm":
                return [self._norm(layer, y, x)]
            return [self.noise(layer, y if self.followed.noises[layer].is_opaque else x)]
        if name in ("scan", "while"):
            return self._loop(eqn, values)
        if name == "cond":
            branches = [self.taken("branch", self.run(branch, values[1:])) for branch in params["branches"]]
            return [functools.reduce(join, outputs) for outputs in zip(*branches, strict=True)]
        if not any(value.data for value in values):
            return functions.without_data(eqn, values)
        if name in ("add", "add_any") and _is_sum(values):
            output = self._sum(*values)
        elif name in ("conv_general_dilated", "dot_general"):
            output = self._weights(eqn, *values[:2])
        elif name == "concatenate":
            output = self._concatenate(eqn, values)
        elif name in functions.SHAPES:
            output = functions.reshaped(eqn, values)
        elif name == "select_n":
            output = self._selected(eqn, *values)
        elif name in arithmetic.ELEMENTWISE:
            output = functions.elementwise(eqn, values)
        else:
            output = self._reduced(eqn, values)
        return [output] * len(eqn.outvars)

    def _loop(self, eqn, values):
        """Runs a loop's body until the description of what it carries no longer changes."""
        body, *parts = tracing.loop_operands(eqn)
        consts, carry, stacked = (values[part] for part in parts)
        # A step sees one slice of what is stacked along the loop.
        slices = [dataclasses.replace(value, constant=None, gauss=None) for value in stacked]
        slices = [
            dataclasses.replace(v, drawn=Expression(operands=(v.drawn,))) if v.drawn else v for v in slices
        ]
        given = ancestors([*consts, *carry, *slices])
        while True:
            carry = [self.fresh(value, ("carry", number)) for number, value in enumerate(carry)]
            outputs = self.taken("step", self.run(body, [*consts, *carry, *slices]))
            # The next step gets noises that an earlier one has drawn: other draws under the same names.
            earlier = [renamed(v, lambda n: n if n in given else EARLIER + base(n)) for v in outputs]
            joined = [join(*pair) for pair in zip(carry, earlier, strict=False)]
            if [*map(signature, joined)] == [*map(signature, carry)]:
                return [renamed(value, base) for value in [*joined, *outputs[len(carry) :]]]
            carry = joined

    def noise(self, name: str, x: Value) -> Value:
        """An array with a noise on it, which `x` describes without the noise."""
        self.followed.origins.setdefault(name, x.origin)
        self.before[name] |= {*map(base, x.ancestors)}
        noise = self.followed.noises[name]
        degree = None if noise.affine is None else 1
        path = Path(degree=degree, is_positive=noise.is_positive, is_factor=noise.s2 is not None)
        paths = x.paths | {name: functions.with_moments(path, x.gauss)}
        return dataclasses.replace(x, data=True, paths=paths, ancestors=x.ancestors | {name}, bias="")

    def _norm(self, name, y, x):
        for noise, path in x.paths.items():
            seen = self.followed.reached.get((base(noise), name))
            self.followed.reached[base(noise), name] = worse(seen, path) if seen else path
        for noise in map(base, x.ancestors):
            norms = self.followed.behind.setdefault(noise, [])
            norms.extend({name} - set(norms))
        if x.bias:
            self.followed.biased[name] = x.bias
        norm = self.marked.norms[name]
        gauss = functions.NODES[:, None]
        if norm.scale is not None and norm.bias is not None:
            gauss = norm.bias + norm.scale * gauss
        # A noise that surgery has moved to the output is drawn within the layer.
        inside = {n for n, path in y.paths.items() if n not in x.ancestors or path.degree == 1}
        paths = {
            n: functions.with_moments(dataclasses.replace(y.paths[n], added=None), gauss) for n in inside
        }
        if self.probe_norms:
            paths[name] = Path(degree=None)
        return Value(True, paths, x.ancestors | paths.keys(), gauss, name, origin="norm")

    def _sum(self, a, b):
        """Adds x and branch(x): if only one of them carries a noise, the other dilutes it."""
        merged = {}
        for one, other in ((a, b), (b, a)):
            fresh = one.ancestors - other.ancestors
            self._together(fresh & one.paths.keys())
            for noise, path in one.paths.items():
                if noise in other.paths:
                    self._shared(noise, path, other.paths[noise])
                    merged[noise] = forget(worse(path, other.paths[noise]))
                elif noise in fresh:
                    if path.way == Way.DIRECT and one.origin == "weights":
                        self.followed.after_last_weight.add(base(noise))
                    added = path.added
                    if path.way == Way.DIRECT:
                        added = variance.added(self.followed.noises.get(base(noise)), path, one.gauss)
                    merged[noise] = dataclasses.replace(path, way=Way.SKIP, degree=None, added=added)
                else:
                    if path.way != Way.SKIP:
                        self.followed.on_trunk.add(base(noise))
                    merged[noise] = dataclasses.replace(path, degree=None)
        return Value(True, merged, a.ancestors | b.ancestors)

    def _shared(self, noise, one, other):
        """Notes that an addition joins two arrays that one draw has changed.

        If E[m] is not 1, test mode may rescale their sum, as in (a + b) / 2, and not the arrays.
        """
        drawn = self.followed.noises.get(base(noise))
        if drawn and drawn.is_drawn and one.degree == other.degree == 1 and drawn.s2 is None:
            self.followed.noises[base(noise)] = drawn._replace(affine=None)

    def _together(self, noises):
        """Notes the noises that follow one another; those side by side see nothing of one another."""
        names = {*map(base, noises)}
        pairs = itertools.permutations(names, 2)
        group = frozenset(itertools.chain.from_iterable((a, b) for a, b in pairs if a in self.before[b]))
        if group:
            self.followed.together.add(group)

    def _weights(self, eqn, a, b):
        x, kernel = (a, b) if a.data else (b, a)
        weights = (
            None
            if kernel.data or kernel.constant is None
            else functions.weights_of(eqn, kernel.constant, a.data)
        )
        name = kernel.name.rpartition("/")[0] or kernel.name
        merged = {}
        for noise, path in union([a, b]).items():
            through = path.weights if name in path.weights or not name else (*path.weights, name)
            added = None
            if path.way == Way.DIRECT and weights is not None:
                added = variance.added(self.followed.noises.get(base(noise)), path, x.gauss, weights)
            way = max(path.way, Way.WEIGHTS)
            merged[noise] = dataclasses.replace(
                path, way=way, weights=through, degree=None, channels=None, added=added
            )
        return Value(True, merged, a.ancestors | b.ancestors, origin="weights")

    def _selected(self, eqn, which, *cases):
        """Selects from several arrays. A noise that some of them carry adds variance where they are taken."""
        output = functions.elementwise(eqn, [which, *cases])
        if output.gauss is None or not which.data:
            return output
        for noise, path in output.paths.items():
            if path.is_whole or noise in which.paths or path.way != Way.DIRECT:
                continue
            drawn = self.followed.noises.get(base(noise))
            parts = [
                variance.added(drawn, case.paths[noise], case.gauss, taken=which.gauss == number)
                for number, case in enumerate(cases)
                if noise in case.paths
            ]
            if (added := functions.total(parts, output.gauss.shape[-1])) is not None:
                path = functions.with_moments(path, output.gauss)
                output.paths[noise] = dataclasses.replace(path, added=added, partial=float(added.mean()))
        return output

    def _concatenate(self, eqn, values):
        sizes = [var.aval.shape[-1] for var in eqn.invars]
        last = eqn.params["dimension"] == len(eqn.outvars[0].aval.shape) - 1
        merged = {}
        for noise, path in union(values).items():
            carriers = [value.paths.get(noise) for value in values]
            if not last or sum(carrier is not None for carrier in carriers) > 1:
                merged[noise] = forget(path)
                continue
            channels, parts = [], []
            for carrier, size in zip(carriers, sizes, strict=True):
                channels.append(np.zeros(size, bool))
                if carrier:
                    channels[-1] |= True if carrier.channels is None else carrier.channels
                found = np.zeros(1) if carrier is None else carrier.added
                parts.append(None if found is None else functions.fit(found, size))
            merged[noise] = dataclasses.replace(
                path, channels=np.concatenate(channels), added=_concatenated(parts)
            )
        for i, value in enumerate(values):
            others = frozenset().union(*(other.ancestors for other in values[:i] + values[i + 1 :]))
            self._together((value.ancestors - others) & value.paths.keys())
        gauss = None
        if last and all(value.gauss is not None for value in values):
            fitted = [functions.fit(value.gauss, size) for value, size in zip(values, sizes, strict=True)]
            gauss = _concatenated(fitted)
        return Value(True, merged, ancestors(values), gauss)

    def _reduced(self, eqn, values):
        """Pooling and unknown operations: the noises go on, and no more is known about them."""
        name, merged = eqn.primitive.name, union(values)
        if name in ("reduce_window_max", "reduce_max"):
            self.followed.max_pooled |= {base(n) for n, path in merged.items() if path.degree == 1}
        axes, rank = eqn.params.get("axes", ()), len(getattr(eqn.invars[0].aval, "shape", ()))
        spatial = name == "reduce_sum" and axes and set(axes) <= set(range(1, rank - 1))
        paths = {noise: forget(path) for noise, path in merged.items()}
        return Value(True, paths, ancestors(values), origin="pool" if spatial else "")


def _concatenated(parts):
    """The parts side by side along the last axis; None if one is unknown."""
    return None if any(part is None for part in parts) else np.concatenate(parts, -1)


def _is_sum(values):
    """Whether an addition joins two branches, rather than being part of a function of one array."""
    a, b = values
    return a.data and b.data and not (a.source and a.source == b.source)
