"""A model as a jaxpr in which its noises and batch normalizations are marked; nothing is computed."""

import collections
import contextlib
import functools
import itertools
import math
from typing import Any, NamedTuple

import flax
import jax
import jax.extend.core
import numpy as np

from dropbn.diagnose import tracing
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.model import Model
from dropbn.diagnose.noises import Noise
from dropbn.diagnose.tracing import mark_p, name_of


class Norm(NamedTuple):
    """A batch normalization of the model.

    Attributes:
      momentum, epsilon: as in `flax.linen.BatchNorm`.
      scale, bias, mean, var: its parameters and running statistics, (channels,); None if unknown.
      calls: how often a forward pass calls it; NaN if that depends on the data.
    """

    momentum: float
    epsilon: float
    scale: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray | None
    var: np.ndarray | None
    calls: float = math.nan


class Parameter(NamedTuple):
    """A parameter's name, and its value if variables were given."""

    name: str
    value: np.ndarray | None


class Key(NamedTuple):
    """A random key that the call was given."""

    value: jax.Array


class Marked(NamedTuple):
    """A traced model.

    Attributes:
      jaxpr: its ClosedJaxpr, in training.
      inputs: the `Parameter` or `Key` of each input of the jaxpr, None for an input of the model.
      noises, norms: by name, in the order of the trace: noises that are on in training and off in test mode,
        and batch normalizations that take statistics in training.
      layers: all that are registered, and what the model itself does with them.
      other_state: modules with running state that is not a batch normalization's.
      at_test: the model traced in test mode, if training draws numbers that belong to no registered noise.
    """

    jaxpr: Any
    inputs: list
    noises: dict[str, Noise]
    norms: dict[str, Norm]
    layers: Layers
    other_state: list[str]
    at_test: "Marked | None" = None

    def has(self, name: str) -> bool:
        """Whether a mark is that of one of its noises or batch normalizations."""
        return name in self.noises or name in self.norms


def trace(model: Model, args: tuple, kwargs: dict, variables: dict | None = None) -> Marked:
    """Traces a model in train mode, and in test mode too if training draws numbers by hand.

    Args:
      model: a model and how it is called.
      args, kwargs: examples of its inputs, flags left out; only their shapes matter.
      variables: its variables. Without them only the shapes are known, from the model's `init`.

    Raises:
      DropbnError: the model cannot be traced with these inputs; nothing tells its training from its test
      mode.
    """
    known = variables is not None
    variables = flax.core.unfreeze(model.shapes(args, kwargs) if variables is None else variables)
    with contextlib.nullcontext() if known else tracing.unchecked_parameters():
        layers = model.layers_of(variables, args, kwargs)
    model.refuse_one_mode(layers)
    model.bound(args, kwargs, testing=False)  # Refuses a flag that says test mode.
    in_mode = functools.partial(_marked, model, layers, variables, known)
    training, testing = layers.traced
    return in_mode(training)._replace(at_test=in_mode(testing) if layers.training_draws else None)


def _marked(model, layers, variables, known, traced):
    jaxpr, keys = traced.jaxpr, model.rngs(layers)
    inputs: list[Parameter | Key | None] = [
        Parameter(
            jax.tree_util.keystr(path[1:], simple=True, separator="/"), np.asarray(leaf) if known else None
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if hasattr(leaf, "shape")  # Others are constants of the trace.
    ]
    drawn = [Key(keys.get(stream, jax.random.key(0))) for stream in traced.streams]
    inputs += [None] * (len(jaxpr.jaxpr.invars) - len(inputs) - len(drawn))
    # A BN that training freezes never sees the noise, and a noise that is always on shifts nothing.
    met, leaves = calls(jaxpr.jaxpr), flax.traverse_util.flatten_dict(variables)
    drawn_within = {*layers.by_hand.values(), *layers.within.values()}
    noises = {
        name_of(path): layers.noises[path].layer
        for path in layers.switched_noises
        if name_of(path) in met and path not in drawn_within
    }
    norms = {
        name_of(path): _norm(path, use.norm, leaves, known, met[name_of(path)])
        for path, use in layers.norms.items()
        if use.train and name_of(path) in met
    }
    return Marked(jaxpr, [*inputs, *drawn], noises, norms, layers, layers.other_state(variables))


def calls(jaxpr: jax.extend.core.Jaxpr) -> dict[Any, float]:
    """How often a run of the jaxpr meets each mark, by name; NaN if that depends on the data."""
    found: dict[Any, float] = collections.defaultdict(float)
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        inner = [*map(calls, jax.extend.core.jaxprs_in_params(params))]
        if eqn.primitive is mark_p:
            found[params["name"]] += params["times"]
        elif kind == "cond":
            for name in set().union(*inner):
                first, *others = (branch[name] for branch in inner)
                found[name] += first if all(other == first for other in others) else math.nan
        else:
            times = {"scan": params.get("length", 1), "while": math.nan}.get(kind, 1)
            for name, number in itertools.chain.from_iterable(each.items() for each in inner):
                found[name] += times * number
    return found


def loops(jaxpr: jax.extend.core.Jaxpr) -> dict[Any, tuple[int, ...]]:
    """The loops around the first mark of each name, outermost first, numbered in the order of the trace."""
    found: dict[Any, tuple[int, ...]] = {}
    numbers = itertools.count()

    def walk(jaxpr, around):
        for eqn in jaxpr.eqns:
            if eqn.primitive is mark_p:
                found.setdefault(eqn.params["name"], around)
            inside = (*around, next(numbers)) if eqn.primitive.name in ("scan", "while") else around
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                walk(inner, inside)

    walk(jaxpr, ())
    return found


def _norm(path, norm, leaves, known, calls):
    """A BN; leaves that nn.scan has stacked, and those of channels that are not last, count as unknown."""
    own = {leaf[-1]: value for leaf, value in leaves.items() if leaf[1:-1] == path}
    stacked = own[norm.mean.name].shape[: norm.num_stacked(own)]
    found: list[Any] = [None] * 4
    if known and norm.axis == -1:
        own = {name: np.asarray(leaf) for name, leaf in own.items()}
        affine = [norm.scale and norm.scale.of(own), norm.bias and norm.bias.of(own)]
        affine = [a.ravel() if a is not None and a.size == math.prod(norm.channels) else a for a in affine]
        found = [*affine, *norm.split(own)]
        found = [None if value is None or value.ndim != 1 else np.float64(value) for value in found]
    scale, bias, mean, var = found
    calls /= math.prod(stacked)
    return Norm(float(norm.momentum), float(norm.epsilon), scale, bias, mean, var, calls)
