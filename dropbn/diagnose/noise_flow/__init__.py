"""Every noise of a model, followed to the batch normalizations that it reaches first.

The model's jaxpr (`marks`) is interpreted with a description (`values`) in the place of every array: which
noises it carries and what has happened to them since they were drawn. A BN ends a noise's way, because behind
it the variance is 1 again. Known by the way, as far as it can be: how an array is distributed, as a function
of the Gaussian that the BN before it puts out, and the variance that a noise adds to every channel.
"""

import dataclasses
import functools

import numpy as np
from jax.extend.core import Literal

from dropbn.diagnose import theory
from dropbn.diagnose.noise_flow import arithmetic, functions
from dropbn.diagnose.noise_flow.marks import Marked, Noise, Norm
from dropbn.diagnose.noise_flow.values import (
    EARLIER,
    Flow,
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
class Flows:
    """What following the noises has found.

    Attributes:
      reached: (noise, norm) -> `Flow`, in the order of the trace.
      origins: what the input of a noise was computed by last, by noise; see `Value`.
      on_trunk: noises that both operands of an addition depend on, one of them being the noisy array itself.
      after_last_weight: noises that go from weights into a skip, with nothing between.
      together: groups of noises that one branch holds.
      max_pooled: noises that go right into max pooling.
      biased: the bias in front of a BN, by BN.
      behind: every BN that depends on a noise, in the order of the trace, by noise.
    """

    reached: dict[tuple[str, str], Flow] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    on_trunk: set[str] = dataclasses.field(default_factory=set)
    after_last_weight: set[str] = dataclasses.field(default_factory=set)
    together: set[frozenset[str]] = dataclasses.field(default_factory=set)
    max_pooled: set[str] = dataclasses.field(default_factory=set)
    biased: dict[str, str] = dataclasses.field(default_factory=dict)
    behind: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def follow(marked: Marked, probe_norms: bool = False) -> Flows:
    """Follows every noise of a traced model to the first BN on each of its paths.

    Args:
      marked: the traced model.
      probe_norms: also follow what a noise on the output of each BN would do; it has the BN's name.
    """
    follower = _Follower(marked, probe_norms)
    inputs = [
        Value(data=True) if given is None else functions.known(given.value, given.name)
        for given in marked.inputs
    ]
    follower.run(marked.jaxpr, inputs)
    return follower.flows


def variance_without_noise(norm: Norm, carried: list[tuple[Noise, Flow]]) -> tuple[np.ndarray | None, str]:
    """The variance of a BN's input without the noise that reaches it, from its running statistics.

    V and m are the running variance and mean, taken with the noise on. Directly behind a noise the input is
    x * m, so v = (V - s2 m^2) / (1 + s2); through weights the noise has added s2 sum_i w_i^2 E[x_i^2], with
    E[x^2] from scale and bias of the BN before, whose output is taken to be Gaussian, and zero padding left
    out. A channel of which less than a hundredth would remain keeps V.

    Args:
      norm: the BN.
      carried: the noises that reach it, and how.

    Returns:
      ((channels,) or None where it cannot be told, how it was found or why not).
    """
    if not carried:
        return norm.var, "no noise reaches it"
    if norm.calls != 1:
        return None, "its statistics are not those of one call"
    if norm.var is None or norm.mean is None:
        return None, "its statistics are not at hand (stacked by nn.scan, or channels that are not last)"
    variance, how = norm.var, set()
    for noise, flow in carried:
        if flow.way == Way.DIRECT:
            if flow.degree != 1 or noise.s2 is None:
                return None, "what reaches it is not its input times the noise"
            s2 = noise.s2 * (1 if flow.channels is None else flow.channels)
            variance = (variance - s2 * norm.mean**2) / (1 + s2)
            how.add("directly")
    for _, flow in carried:
        if flow.way != Way.DIRECT:
            added = None if flow.added is None else functions.fit(flow.added, len(variance))
            if added is None:
                return None, "the noise comes through more than a BN, an activation and one weight layer"
            variance = variance - added
            how.add("through weights" if flow.way == Way.WEIGHTS else "through a skip")
    # A small difference of large numbers is an error of the running statistics, or a dead channel.
    kept = variance <= 0.01 * norm.var
    if np.all(kept):
        return None, "its running variance is not above what the noise alone would bring"
    how = " and ".join(sorted(how)) + (
        f"; {kept.sum()} of its {kept.size} channels kept" if kept.any() else ""
    )
    return np.where(kept, norm.var, variance), how


class _Follower:
    def __init__(self, marked, probe_norms):
        self.marked, self.flows, self.probe_norms = marked, Flows(), probe_norms

    def run(self, jaxpr, inputs):
        """Descriptions of the outputs of a jaxpr, closed or not."""
        consts = [functions.known(const) for const in getattr(jaxpr, "consts", ())]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(atom):
            return functions.known(atom.val) if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            outputs = self.step(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn, values):
        name, params = eqn.primitive.name, eqn.params
        if name == "dropbn_mark":
            return [getattr(self, "_" + params["kind"])(params["name"], *values)]
        if name in ("scan", "while"):
            return self._loop(eqn, values)
        if name == "cond":
            branches = [self.run(branch, values[1:]) for branch in params["branches"]]
            return [functools.reduce(join, outputs) for outputs in zip(*branches, strict=True)]
        inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
        if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(values):
            return self.run(inner, values)
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
        """A loop's body, again and again until the description of what it carries changes no more."""
        params = eqn.params
        if eqn.primitive.name == "while":
            body, start = params["body_jaxpr"], params["cond_nconsts"]
            first, last = start + params["body_nconsts"], len(values)
        else:
            # JAX 0.10 and 0.12 say differently how many there are of each; the ranks say it in both.
            body, start = params["jaxpr"], 0
            inner = body.jaxpr
            last = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, inner.invars, strict=True))
            num_carry = sum(
                a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, inner.outvars, strict=True)
            )
            first = last - num_carry
        consts, carry = values[start:first], values[first:last]
        # Of what is stacked along the loop, a step sees one slice.
        slices = [dataclasses.replace(value, constant=None, gauss=None) for value in values[last:]]
        given = ancestors([*consts, *carry, *slices])
        while True:
            outputs = self.run(body, [*consts, *carry, *slices])
            # What the next step gets was drawn in an earlier one: other noises, of the same names.
            earlier = [renamed(v, lambda n: n if n in given else EARLIER + base(n)) for v in outputs]
            joined = [join(*pair) for pair in zip(carry, earlier, strict=False)]
            if [*map(signature, joined)] == [*map(signature, carry)]:
                return [renamed(value, base) for value in [*joined, *outputs[len(carry) :]]]
            carry = joined

    def _noise(self, name, y, x):
        self.flows.origins.setdefault(name, x.origin)
        noise = self.marked.noises[name]
        flow = Flow(degree=None if noise.s2 is None else 1, is_positive=noise.is_positive)
        flows = x.flows | {name: functions.with_moments(flow, x.gauss)}
        return dataclasses.replace(x, data=True, flows=flows, ancestors=x.ancestors | {name}, bias="")

    def _norm(self, name, y, x, mean):
        for noise, flow in x.flows.items():
            seen = self.flows.reached.get((base(noise), name))
            self.flows.reached[base(noise), name] = worse(seen, flow) if seen else flow
        for noise in map(base, x.ancestors):
            norms = self.flows.behind.setdefault(noise, [])
            norms.extend({name} - set(norms))
        if x.bias:
            self.flows.biased[name] = x.bias
        norm = self.marked.norms[name]
        known = norm.scale is not None and norm.bias is not None
        scale, bias = (norm.scale, norm.bias) if known else (np.ones(1), np.zeros(1))
        gauss = bias + scale * functions.NODES[:, None]
        # A noise that surgery has put on the output is drawn within the layer.
        inside = {n for n, flow in y.flows.items() if n not in x.ancestors or flow.degree == 1}
        flows = {
            n: functions.with_moments(dataclasses.replace(y.flows[n], added=None), gauss) for n in inside
        }
        if self.probe_norms:
            flows[name] = Flow(degree=None)
        return Value(True, flows, x.ancestors | flows.keys(), gauss, name, origin="norm")

    def _sum(self, a, b):
        """x + branch(x): a noise in one of them alone is diluted by the other."""
        merged = {}
        for one, other in ((a, b), (b, a)):
            fresh = one.ancestors - other.ancestors
            self._together(fresh & one.flows.keys())
            for noise, flow in one.flows.items():
                if noise in other.flows:
                    merged[noise] = forget(worse(flow, other.flows[noise]))
                elif noise in fresh:
                    if flow.way == Way.DIRECT and one.origin == "weights":
                        self.flows.after_last_weight.add(base(noise))
                    added = self._added(noise, flow, one.gauss) if flow.way == Way.DIRECT else flow.added
                    merged[noise] = dataclasses.replace(flow, way=Way.SKIP, degree=None, added=added)
                else:
                    if flow.way != Way.SKIP:
                        self.flows.on_trunk.add(base(noise))
                    merged[noise] = dataclasses.replace(flow, degree=None)
        return Value(True, merged, a.ancestors | b.ancestors)

    def _together(self, noises):
        group = frozenset(map(base, noises))
        if len(group) > 1:
            self.flows.together.add(group)

    def _added(self, noise, flow, gauss, weights=None):
        """The variance that a noise adds to each output, without weights s2 E[x^2]; None if unknown."""
        if flow.degree != 1:
            return None
        noise = self.marked.noises[base(noise)]
        if noise.s2 is None or gauss is None:
            return None
        second = functions.DENSITY @ np.square(gauss)
        if flow.channels is not None:
            second = second * flow.channels
        if weights is None:
            return noise.s2 * second
        groups, inputs, _ = weights.shape
        second = None if noise.is_shared else functions.fit(second, groups * inputs)
        if second is None:
            return None
        of_groups = zip(weights, second.reshape(groups, inputs), strict=True)
        return np.concatenate([theory.added_variance(noise.s2, *group) for group in of_groups])

    def _weights(self, eqn, a, b):
        x, kernel = (a, b) if a.data else (b, a)
        weights = (
            None
            if kernel.data or kernel.constant is None
            else functions.weights_of(eqn, kernel.constant, a.data)
        )
        name = kernel.name.rpartition("/")[0] or kernel.name
        merged = {}
        for noise, flow in union([a, b]).items():
            through = flow.weights if name in flow.weights or not name else (*flow.weights, name)
            added = None
            if flow.way == Way.DIRECT and weights is not None:
                added = self._added(noise, flow, x.gauss, weights)
            way = max(flow.way, Way.WEIGHTS)
            merged[noise] = dataclasses.replace(
                flow, way=way, weights=through, degree=None, channels=None, added=added
            )
        return Value(True, merged, a.ancestors | b.ancestors, origin="weights")

    def _concatenate(self, eqn, values):
        sizes = [var.aval.shape[-1] for var in eqn.invars]
        last = eqn.params["dimension"] == len(eqn.outvars[0].aval.shape) - 1
        merged = {}
        for noise, flow in union(values).items():
            carriers = [value.flows.get(noise) for value in values]
            if not last or sum(carrier is not None for carrier in carriers) > 1:
                merged[noise] = forget(flow)
                continue
            channels, added = [], []
            for carrier, size in zip(carriers, sizes, strict=True):
                channels.append(np.zeros(size, bool))
                if carrier:
                    channels[-1] |= True if carrier.channels is None else carrier.channels
                found = np.zeros(1) if carrier is None else carrier.added
                added.append(None if found is None else functions.fit(found, size))
            added = None if any(part is None for part in added) else np.concatenate(added)
            merged[noise] = dataclasses.replace(flow, channels=np.concatenate(channels), added=added)
        for i, value in enumerate(values):
            others = frozenset().union(*(other.ancestors for other in values[:i] + values[i + 1 :]))
            self._together((value.ancestors - others) & value.flows.keys())
        gauss = None
        if last and all(value.gauss is not None for value in values):
            fitted = [functions.fit(value.gauss, size) for value, size in zip(values, sizes, strict=True)]
            gauss = None if any(part is None for part in fitted) else np.concatenate(fitted, 1)
        return Value(True, merged, ancestors(values), gauss)

    def _reduced(self, eqn, values):
        """Pooling, and whatever is not known: noises go on, and no more is said of them."""
        name, merged = eqn.primitive.name, union(values)
        if name in ("reduce_window_max", "reduce_max"):
            self.flows.max_pooled |= {base(n) for n, flow in merged.items() if flow.degree == 1}
        axes, rank = eqn.params.get("axes", ()), len(getattr(eqn.invars[0].aval, "shape", ()))
        spatial = name == "reduce_sum" and axes and set(axes) <= set(range(1, rank - 1))
        flows = {noise: forget(flow) for noise, flow in merged.items()}
        return Value(True, flows, ancestors(values), origin="pool" if spatial else "")


def _is_sum(values):
    """Whether an addition joins two ways of the data, and is not within a function of one array."""
    a, b = values
    return a.data and b.data and not (a.source and a.source == b.source)
