"""Noises followed through a jaxpr: an interpreter that computes descriptions instead of arrays."""

import collections
import dataclasses
import functools
import itertools

import numpy as np
from jax.extend.core import Literal

from dropbn.diagnose import random_draws, tracing
from dropbn.diagnose.noise_flow import arithmetic, forms, functions, variance
from dropbn.diagnose.noise_flow.expressions import Expression
from dropbn.diagnose.noise_flow.forms import Forms
from dropbn.diagnose.noise_flow.marks import Key, Marked, Noise
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


@dataclasses.dataclass
class Followed:
    """Where the noises of a model lead.

    Attributes:
      noises: those of the trace, and those that are drawn by hand, by where their draws stand.
      unknown: where draws stand that do something else than scale and shift data.
      reached: (noise, norm) -> `Path`, in the order of the trace.
      origins: what computed the input of each noise last; see `Value.origin`.
      on_trunk: noises on which both operands of an addition depend, one operand being the noisy array itself.
      after_last_weight: noises that stand between a weight layer and the addition of a skip.
      together: groups of noises that stand in one branch.
      max_pooled: noises whose array goes straight into max pooling.
      biased: BN -> the bias that was added right before it.
      behind: noise -> every BN that depends on it, in the order of the trace.
    """

    noises: dict[str, Noise]
    unknown: set[str] = dataclasses.field(default_factory=set)
    reached: dict[tuple[str, str], Path] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    on_trunk: set[str] = dataclasses.field(default_factory=set)
    after_last_weight: set[str] = dataclasses.field(default_factory=set)
    together: set[frozenset[str]] = dataclasses.field(default_factory=set)
    max_pooled: set[str] = dataclasses.field(default_factory=set)
    biased: dict[str, str] = dataclasses.field(default_factory=dict)
    behind: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def understood(self) -> set[str]:
        """Where the draws stand of which every use is a noise."""
        drawn = (name.split("; ") for name, noise in self.noises.items() if noise.is_drawn)
        return set(itertools.chain.from_iterable(drawn)) - self.unknown


def follow(marked: Marked, probe_norms: bool = False) -> Followed:
    """Follows every noise of a traced model to the first BN on each of its paths.

    Args:
      marked: the traced model.
      probe_norms: also follow a supposed noise on the output of each BN, under the BN's name.
    """
    found = None
    if marked.at_test is not None:
        at_test = Forms()
        _Follower(marked.at_test, at_test).follow()
        found = Forms(frozenset(marked.layers.training_draws), at_test)
    return _Follower(marked, found, probe_norms).follow()


class _Follower:
    """An interpreter of jaxprs; every method takes and returns descriptions of arrays."""

    def __init__(self, marked, found=None, probe_norms=False):
        self.marked, self.forms, self.probe_norms = marked, found, probe_norms
        self.followed = Followed(dict(marked.noises))
        self.before = collections.defaultdict(set)  # noise -> those on which its input depends
        self.calls = []  # the equations around the current one

    def follow(self):
        """Runs the trace."""
        inputs = []
        for number, given in enumerate(self.marked.inputs):
            if isinstance(given, Key):
                inputs.append(Value(drawn=Expression(value=given.value, is_key=True) if self.forms else None))
            elif given is None:
                inputs.append(self._fresh(Value(data=True), ("input", number)))
            else:
                inputs.append(functions.known(given.value, given.name))
        self._whole("output", self.run(self.marked.jaxpr, inputs))
        if self.forms:
            self.followed.unknown |= self.forms.unknown
        return self.followed

    def run(self, jaxpr, inputs):
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

    def step(self, eqn, values):
        name, params = eqn.primitive.name, eqn.params
        inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
        is_call = inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(values)
        if is_call and name not in ("scan", "while"):
            return self.run(inner, values)
        return self._with_forms(eqn, values) if self.forms else self._described(eqn, values)

    def _with_forms(self, eqn, values):
        """The outputs of an equation where draws are followed."""
        has_data, has_drawn = any(v.data for v in values), any(v.drawn for v in values)
        if not has_data:
            return self._drawn(eqn, values) if has_drawn else self._described(eqn, values)
        form = self.forms.affine(eqn, values)
        if form is not None:
            # The description is that of the array without what is drawn.
            x = next(v for v in values if v.data) if has_drawn else self._described(eqn, values)[0]
            return [dataclasses.replace(x, form=form)]
        self.forms.note_unknown(eqn, values)
        label, is_mark = forms.label_of(eqn, values), eqn.primitive.name == "dropbn_mark"
        taken = [*values[:is_mark], *self._whole(label, values[is_mark:])]
        outputs = self._described(eqn, taken)
        return [
            self._fresh(each, (label, number) if number else label) for number, each in enumerate(outputs)
        ]

    def _drawn(self, eqn, values):
        where = random_draws.where(self.calls)
        if eqn.primitive.name in ("scan", "while", "cond"):
            inside = [output.drawn.draws for output in self._described(eqn, values) if output.drawn]
            where = "; ".join(sorted({draw.name for draw in frozenset().union(*inside)}))
        return self.forms.drawn(eqn, values, where)

    def _fresh(self, value, label):
        return forms.fresh(value, label) if self.forms and value.data else value

    def _whole(self, label, values):
        """The values that something takes; a noise that is drawn by hand is complete now."""
        return [self._taken((label, number), value) for number, value in enumerate(values)]

    def _taken(self, key, value):
        name = self.forms.take(key, value) if self.forms and value.form else ""
        if not name:
            return value
        self.followed.noises[name] = self.forms.noises[name]
        return forms.fresh(self._noise(name, value, value), value.form.label)

    def _described(self, eqn, values):
        name, params = eqn.primitive.name, eqn.params
        if name == "dropbn_mark":
            return [getattr(self, "_" + params["kind"])(params["name"], *values)]
        if name in ("scan", "while"):
            return self._loop(eqn, values)
        if name == "cond":
            branches = [self._whole("branch", self.run(branch, values[1:])) for branch in params["branches"]]
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
            carry = [self._fresh(value, ("carry", number)) for number, value in enumerate(carry)]
            outputs = self._whole("step", self.run(body, [*consts, *carry, *slices]))
            # The next step gets noises that an earlier one has drawn: other draws under the same names.
            earlier = [renamed(v, lambda n: n if n in given else EARLIER + base(n)) for v in outputs]
            joined = [join(*pair) for pair in zip(carry, earlier, strict=False)]
            if [*map(signature, joined)] == [*map(signature, carry)]:
                return [renamed(value, base) for value in [*joined, *outputs[len(carry) :]]]
            carry = joined

    def _noise(self, name, y, x):
        self.followed.origins.setdefault(name, x.origin)
        self.before[name] |= {*map(base, x.ancestors)}
        noise = self.followed.noises[name]
        degree = None if noise.affine is None else 1
        path = Path(degree=degree, is_positive=noise.is_positive, is_factor=noise.s2 is not None)
        paths = x.paths | {name: functions.with_moments(path, x.gauss)}
        return dataclasses.replace(x, data=True, paths=paths, ancestors=x.ancestors | {name}, bias="")

    def _norm(self, name, y, x, mean):
        for noise, path in x.paths.items():
            seen = self.followed.reached.get((base(noise), name))
            self.followed.reached[base(noise), name] = worse(seen, path) if seen else path
        for noise in map(base, x.ancestors):
            norms = self.followed.behind.setdefault(noise, [])
            norms.extend({name} - set(norms))
        if x.bias:
            self.followed.biased[name] = x.bias
        norm = self.marked.norms[name]
        known = norm.scale is not None and norm.bias is not None
        scale, bias = (norm.scale, norm.bias) if known else (np.ones(1), np.zeros(1))
        gauss = bias + scale * functions.NODES[:, None]
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
