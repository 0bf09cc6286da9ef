"""A model as a jaxpr in which its noises and batch normalizations are marked; nothing is computed.

A mark is an identity with a name: `mark(y, x)` gives y, and says that x was what the layer got. That of a
batch normalization has its running mean behind them. Where nn.vmap maps this last argument, one mark stands
for as many layers, which `times` counts.
"""

import collections
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
      amount: its rate or beta; None where it is traced or where the type has none.
      s2: Var[m]; None where it is unknown or infinite, or where m does not multiply the input.
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
      momentum, epsilon: its own.
      scale, bias, mean, var: None where they are not known.
      calls: how often a forward pass calls it; NaN where the data decide.
    """

    momentum: float
    epsilon: float
    scale: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray | None
    var: np.ndarray | None
    calls: float = math.nan


class Parameter(NamedTuple):
    """A parameter's name, and its value where variables were given."""

    name: str
    value: np.ndarray | None


class Marked(NamedTuple):
    """A traced model.

    Attributes:
      jaxpr: its ClosedJaxpr, in training.
      inputs: for each input of the jaxpr its `Parameter`, or None for an input of the model.
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
      variables: its variables, if their values are to be known; otherwise their shapes come from its `init`.
      rngs: random keys by stream; by default one for "dropout".
      **kwargs: further arguments of its `__call__`.

    Raises:
      DropbnError: the model cannot be traced with these inputs.
    """
    noises, norms, stacked, number = {}, {}, {}, collections.Counter()
    rngs = modes.default_rngs(rngs)
    known = variables is not None
    if not known:
        variables = _shapes(model, args, rngs, kwargs)
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(variables))

    def mark(run, arguments, named, context):
        module, name = context.module, registry.name_of(context.module)
        before = number[name]
        y, x = run(*arguments, **named), next(iter((*arguments, *named.values())), None)
        noise, norm = (registry.of(module, kinds) for kinds in (registry.NOISES, registry.NORMS))
        if context.method_name != "__call__" or not (norm or noise) or not isinstance(y, jax.Array):
            return y
        # Marked already: a subclass has called its parent, or surgery another noise. Or nothing was done.
        if number[name] > before or y is x or (noise and registry.is_identity(module, noise)):
            return y
        if norm and getattr(module, norm.flag, None) is norm.test:
            return y  # Frozen on purpose: it takes no statistics of what the noise does.
        number[name] += 1
        if norm:
            mean = module.get_variable("batch_stats", "mean")
            stacked[name] = math.prod(flat["batch_stats", *module.path, "mean"].shape) // mean.size
            norms[name] = _norm(module, flat if known else {})
            return mark_p.bind(y, x, mean, kind="norm", name=name, times=1)
        noises[name] = _noise(module)
        if not isinstance(module, (nn.Dropout, noise_kinds.Noise)):
            x = y  # It may be more than a multiplication, such as attention: what it puts out counts.
        return mark_p.bind(y, x, kind="noise", name=name, times=1)

    def run(variables, *args):
        mode = modes.TRAIN._replace(update=False)
        # A block under nn.jit would else bring the names of the first that is made alike.
        return modes.apply(model, variables, *args, mode=mode, rngs=rngs, retrace=True, **kwargs)[0]

    try:
        with nn.intercept_methods(mark):
            jaxpr = jax.make_jaxpr(run)(variables, *args)
    except DropbnError:
        raise
    except Exception as error:
        raise DropbnError(f"The model cannot be traced with these inputs: {_first_line(error)}") from error
    inputs = [
        Parameter(
            jax.tree_util.keystr(keys[1:], simple=True, separator="/"), np.asarray(leaf) if known else None
        )
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]
    met = calls(jaxpr.jaxpr)
    norms = {name: norm._replace(calls=met[name] / stacked[name]) for name, norm in norms.items()}
    return Marked(jaxpr, inputs + [None] * (len(jaxpr.jaxpr.invars) - len(inputs)), noises, norms)


def calls(jaxpr) -> collections.Counter:
    """How often a run of the jaxpr meets each mark, by name; NaN where the data decide."""
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
    try:
        keys = {"params": jax.random.key(0)} | rngs
        init = jax.eval_shape(lambda *args: model.init(keys, *args, **flags), *args)
    except Exception as error:
        raise DropbnError(f"The model cannot be traced with these inputs: {_first_line(error)}") from error
    return flax.core.unfreeze(init)


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
    """What is known of a BN; what nn.scan has stacked is not, and neither are channels that are not last."""

    def find(collection, leaf, absent=None):
        value = np.asarray(flat.get((collection, *module.path, leaf), absent), np.float64)
        return value if flat and value.ndim == 1 and registry.attribute(module, "axis") == -1 else None

    momentum, epsilon = (float(registry.attribute(module, key)) for key in ("momentum", "epsilon"))
    statistics = (find("batch_stats", leaf) for leaf in ("mean", "var"))
    return Norm(momentum, epsilon, find("params", "scale", [1.0]), find("params", "bias", [0.0]), *statistics)
