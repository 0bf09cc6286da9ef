"""A model as a jaxpr in which its noises and batch normalizations are marked; nothing is computed.

A mark is an identity with a name: `mark(y, x)` returns the layer's output y and records its input x. The mark
of a batch normalization takes its running mean as a third argument. If nn.vmap maps this argument, the one
mark stands for several layers, which `times` counts.
"""

import collections
import contextlib
import itertools
import math
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.interpreters import batching

from dropbn.diagnose import modes, registry
from dropbn.errors import DropbnError
from dropbn.nn import laws
from dropbn.nn import noise as noise_kinds

mark_p = jax.extend.core.Primitive("dropbn_mark")
mark_p.def_impl(lambda y, *_, **__: y)
mark_p.def_abstract_eval(lambda y, *_, **__: y)


def _batch(args, dims, times, **params):
    args = [jnp.moveaxis(a, d, 0) if d is not None else a for a, d in zip(args, dims, strict=True)]
    if dims[-1] is not None:
        times *= len(args[-1])
    return mark_p.bind(*args, times=times, **params), 0 if dims[0] is not None else None


batching.primitive_batchers[mark_p] = _batch


class Noise(NamedTuple):
    """A noise of the model.

    Attributes:
      amount: its rate or beta; None if that is traced or the type has none.
      s2: Var[m]; None if it is unknown or infinite, or if m does not multiply the input.
      is_positive: m >= 0, so that it commutes with ReLU (Kim et al. 2023, Proposition 1).
      is_shared: one m serves several positions (`broadcast_dims`).
    """

    amount: float | None
    s2: float | None
    is_positive: bool
    is_shared: bool


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


class Marked(NamedTuple):
    """A traced model.

    Attributes:
      jaxpr: its ClosedJaxpr, in training.
      inputs: the `Parameter` of each input of the jaxpr, None for an input of the model.
      noises, norms: by name, in the order of the trace.
    """

    jaxpr: Any
    inputs: list
    noises: dict[str, Noise]
    norms: dict[str, Norm]


def trace(model: nn.Module, *args, variables: dict | None = None, rngs=None, **kwargs) -> Marked:
    """Traces a model in train mode.

    Args:
      model: any Linen module.
      *args: example inputs; only their shapes matter.
      variables: its variables. Without them only the shapes are known, from the model's `init`.
      rngs: random keys by stream; by default one for "dropout".
      **kwargs: further arguments of its `__call__`.

    Raises:
      DropbnError: the model cannot be traced with these inputs.
    """
    rngs = modes.default_rngs(rngs)
    known = variables is not None

    def run(variables, *args):
        mode = modes.TRAIN._replace(update=False)
        # Otherwise a block under nn.jit would carry the names of the first block that is built alike.
        return modes.apply(model, variables, *args, mode=mode, rngs=rngs, retrace=True, **kwargs)[0]

    with _refusing():
        if not known:
            variables = _shapes(model, args, rngs, kwargs)
        marker = _Marker(flax.traverse_util.flatten_dict(flax.core.unfreeze(variables)), known)
        with nn.intercept_methods(marker):
            jaxpr = jax.make_jaxpr(run)(variables, *args)
    inputs = [
        Parameter(
            jax.tree_util.keystr(keys[1:], simple=True, separator="/"), np.asarray(leaf) if known else None
        )
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]
    met = calls(jaxpr.jaxpr)
    norms = {
        name: norm._replace(calls=met[name] / marker.stacked[name]) for name, norm in marker.norms.items()
    }
    return Marked(jaxpr, inputs + [None] * (len(jaxpr.jaxpr.invars) - len(inputs)), marker.noises, norms)


class _Marker:
    """For `flax.linen.intercept_methods`: marks the output of every noise and BN, and notes the layer."""

    def __init__(self, leaves, known):
        self.leaves, self.known = leaves, known
        self.noises, self.norms = {}, {}
        self.stacked = {}  # How many layers nn.scan or nn.vmap has made of a BN.
        self.marked = collections.Counter()

    def __call__(self, run, arguments, named, context):
        module, name = context.module, registry.name_of(context.module)
        before = self.marked[name]
        y, x = run(*arguments, **named), next(iter((*arguments, *named.values())), None)
        noise, norm = (registry.of(module, kinds) for kinds in (registry.NOISES, registry.NORMS))
        if context.method_name != "__call__" or not (norm or noise) or not isinstance(y, jax.Array):
            return y
        # Marked already (a subclass has called its parent, surgery another noise), or nothing was done.
        if self.marked[name] > before or y is x or (noise and registry.is_identity(module, noise)):
            return y
        if norm and getattr(module, norm.flag, None) is norm.test:
            return y  # Frozen on purpose: its statistics never see the noise.
        self.marked[name] += 1
        return self._mark_norm(name, module, y, x) if norm else self._mark_noise(name, module, y, x)

    def _mark_norm(self, name, module, y, x):
        mean = module.get_variable("batch_stats", "mean")
        self.stacked[name] = math.prod(self.leaves["batch_stats", *module.path, "mean"].shape) // mean.size
        self.norms[name] = _norm(module, self.leaves if self.known else {})
        return mark_p.bind(y, x, mean, kind="norm", name=name, times=1)

    def _mark_noise(self, name, module, y, x):
        self.noises[name] = _noise(module)
        if not isinstance(module, (nn.Dropout, noise_kinds.Noise)):
            x = y  # It may be more than a multiplication, such as attention: its output counts.
        return mark_p.bind(y, x, kind="noise", name=name, times=1)


def calls(jaxpr) -> collections.Counter:
    """How often a run of the jaxpr meets each mark, by name; NaN if that depends on the data."""
    found = collections.Counter()
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
            times = {"scan": params.get("length"), "while": math.nan}.get(kind, 1)
            for name, number in itertools.chain.from_iterable(each.items() for each in inner):
                found[name] += times * number
    return found


def _shapes(model, args, rngs, kwargs):
    flags = modes.with_flags(model, args, kwargs, modes.TRAIN)
    keys = {"params": jax.random.key(0)} | rngs
    return flax.core.unfreeze(jax.eval_shape(lambda *args: model.init(keys, *args, **flags), *args))


@contextlib.contextmanager
def _refusing():
    """Turns any error of a model into a sentence."""
    try:
        yield
    except DropbnError:
        raise
    except Exception as error:
        raise DropbnError(f"The model cannot be traced with these inputs: {_first_line(error)}") from error


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(" (https")[0]


def _noise(module):
    amount = getattr(module, "amount", getattr(module, "rate", None))
    amount = float(amount) if laws.is_number(amount) else None
    s2 = None
    if amount is not None and not getattr(module, "restore", ""):
        s2 = getattr(laws.Dropout(amount) if isinstance(module, nn.Dropout) else module, "s2", None)
    positive = isinstance(module, (nn.Dropout, noise_kinds.Dropout, noise_kinds.Uout))
    s2 = float(s2) if s2 is not None and np.isfinite(s2) else None
    return Noise(amount, s2, positive, bool(getattr(module, "broadcast_dims", ())))


def _norm(module, flat):
    """A BN; leaves that nn.scan has stacked, and those of channels that are not last, count as unknown."""

    def find(collection, leaf, absent=None):
        value = np.asarray(flat.get((collection, *module.path, leaf), absent), np.float64)
        return value if flat and value.ndim == 1 and registry.attribute(module, "axis") == -1 else None

    momentum, epsilon = (float(registry.attribute(module, key)) for key in ("momentum", "epsilon"))
    statistics = (find("batch_stats", leaf) for leaf in ("mean", "var"))
    return Norm(momentum, epsilon, find("params", "scale", [1.0]), find("params", "bias", [0.0]), *statistics)
