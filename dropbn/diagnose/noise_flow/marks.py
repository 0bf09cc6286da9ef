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

from dropbn.diagnose import registry, tracing
from dropbn.diagnose.interception import TEST, TRAIN
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.model import Model
from dropbn.diagnose.seam import first
from dropbn.diagnose.tracing import mark_p, name_of, split
from dropbn.nn import laws


class Noise(NamedTuple):
    """A noise of the model.

    Attributes:
      amount: its rate or beta; None if that is traced or the type has none.
      affine: the moments of y = m x + n; None if they are unknown or infinite.
      is_positive: m >= 0 and n = 0, so that it commutes with ReLU (Kim et al. 2023, Proposition 1).
      is_shared: one m serves several positions, as with `broadcast_dims`.
      is_drawn: the model draws it by hand; no layer is registered.
      per_example: it is drawn by hand, at most one number for each example, as drop path does.
    """

    amount: float | None
    affine: laws.Affine | None
    is_positive: bool
    is_shared: bool
    is_drawn: bool = False
    per_example: bool = False

    @property
    def s2(self) -> float | None:
        """Var[m] of a noise that multiplies by m with E[m] = 1; None of another."""
        affine = self.affine
        return affine.var_m if affine and affine == laws.Affine(var_m=affine.var_m) else None


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
        in_mode = functools.partial(_trace, model, args, kwargs, variables, known, layers)
        return in_mode(TRAIN.frozen)._replace(at_test=in_mode(TEST) if layers.training_draws else None)


def _trace(model, args, kwargs, variables, known, layers, mode):
    marker = _Marker(layers, flax.traverse_util.flatten_dict(variables), known)
    (arrays, rebuild), rngs = split((args, kwargs)), model.rngs(layers)

    def run(variables, arrays, rngs):
        # Otherwise a block under nn.jit would carry the names of the first block that is built alike.
        args, kwargs = rebuild(arrays)
        return model.run(variables, args, kwargs, mode, rngs, retrace=True)[0]

    with model.intercepting(marker):
        jaxpr = jax.make_jaxpr(run)(variables, arrays, rngs)
    inputs: list[Parameter | Key | None] = [
        Parameter(
            jax.tree_util.keystr(keys[1:], simple=True, separator="/"), np.asarray(leaf) if known else None
        )
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]
    met = calls(jaxpr.jaxpr)
    norms = {
        name: norm._replace(calls=met[name] / marker.stacked[name]) for name, norm in marker.norms.items()
    }
    keys = [Key(value) for value in jax.tree.leaves(rngs)]
    inputs += [None] * (len(jaxpr.jaxpr.invars) - len(inputs) - len(keys))
    return Marked(jaxpr, [*inputs, *keys], marker.noises, norms, layers, layers.other_state(variables))


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


class _Marker:
    """For `model.Model.intercepting`: marks the output of every noise and BN, and notes the layer."""

    def __init__(self, layers, leaves, known):
        self.layers, self.leaves, self.known = layers, leaves, known
        self.noises, self.norms = {}, {}
        self.stacked = {}  # How many layers nn.scan or nn.vmap has made of a BN.
        self.marked: collections.Counter[str] = collections.Counter()

    def __call__(self, run, arguments, named, layer):
        path, name = layer.path, name_of(layer.path)
        before = self.marked[name]
        with tracing.within(path):
            y, x = run(*arguments, **named), first(arguments, named)
        # A BN that training freezes never sees the noise, and a noise that is always on shifts nothing.
        is_norm = self.layers.takes_batch(path)
        is_registered = path not in (self.layers.by_hand | self.layers.within).values()
        is_noise = path in self.layers.switched_noises and is_registered
        if not layer.is_call or not (is_norm or is_noise) or not isinstance(y, jax.Array):
            return y
        # Marked already (a subclass has called its parent, surgery another noise), or nothing was done.
        if self.marked[name] > before or y is x:
            return y
        self.marked[name] += 1
        return self._mark_norm(name, layer, y, x) if is_norm else self._mark_noise(name, layer.module, y, x)

    def _mark_norm(self, name, layer, y, x):
        norm = self.layers.norms[layer.path].norm
        mean = layer.get(norm.mean.name)
        whole = self.leaves["batch_stats", *layer.path, norm.mean.name]
        self.stacked[name] = math.prod(whole.shape) // mean.size
        self.norms[name] = _norm(layer, norm, self.leaves if self.known else {})
        return mark_p.bind(y, x, mean, kind="norm", name=name, times=1)

    def _mark_noise(self, name, module, y, x):
        self.noises[name] = _noise(module)
        if not registry.is_affine(module):
            x = y  # It may be more than a multiplication, such as attention: its output counts.
        return mark_p.bind(y, x, kind="noise", name=name, times=1)


def _noise(module):
    amount = registry.amount_of(module)
    amount = float(amount) if laws.is_number(amount) else None
    affine, law = None, registry.law_of(module)
    if amount is not None and not getattr(module, "restore", ""):
        affine = laws.Affine(*map(float, law.affine)) if law and np.all(np.isfinite(law.affine)) else None
    shared = bool(getattr(module, "is_shared", getattr(module, "broadcast_dims", ())))
    return Noise(amount, affine, isinstance(law, (laws.Dropout, laws.Uout)), shared)


def _norm(layer, norm, flat):
    """A BN; leaves that nn.scan has stacked, and those of channels that are not last, count as unknown."""
    found: list[Any] = [None] * 4
    if flat and norm.axis == -1:
        own = {path[-1]: np.asarray(leaf) for path, leaf in flat.items() if path[1:-1] == layer.path}
        found = [own.get("scale", np.ones(1)), own.get("bias", np.zeros(1)), *norm.split(own)]
        if not registry.of(layer.module, registry.NORMS):  # Nobody knows what its parameters mean.
            found[:2] = [None, None]
        found = [None if value is None or value.ndim != 1 else np.float64(value) for value in found]
    return Norm(float(norm.momentum), float(norm.epsilon), *found)
