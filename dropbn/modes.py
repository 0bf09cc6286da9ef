"""Run any Linen model with dropout, BN's source and BN's update switched separately.

One `train` flag stands for three switches. Most of what this package measures is a difference between
two settings of only one of them:

===========  =====  ==========  ======
mode         noise  BN uses     running statistics
===========  =====  ==========  ======
`TRAIN`      on     batch       updated
`TEST`       off    running     frozen
`LI_ADJUST`  off    running     updated
===========  =====  ==========  ======

The switches work by interception, on models that know nothing of this package: `flax.linen.Dropout`,
`dropbn.noise` and `flax.linen.BatchNorm` (subclasses included) are reached wherever they stand, also
inside `nn.scan`, `nn.remat` and `nn.jit`. Noise that a model draws outside such a module cannot be reached:
it is on in every mode but `TEST`, which is the model's own test mode.
"""

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn import moments
from dropbn.errors import DropbnError
from dropbn.noise import Noise


class Mode(NamedTuple):
    """Three switches.

    Attributes:
      noise: dropout and its kin on or off.
      batch_norm: BN normalizes with the statistics of the "batch" or with the "running" ones.
      update: running statistics move towards those of the batch, or stay.
    """

    noise: bool
    batch_norm: Literal["batch", "running"]
    update: bool


TRAIN = Mode(noise=True, batch_norm="batch", update=True)
TEST = Mode(noise=False, batch_norm="running", update=False)
LI_ADJUST = Mode(noise=False, batch_norm="running", update=True)

# What these flags of a model say in training.
_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
_calls = itertools.count()


def apply(
    model: nn.Module,
    variables: dict,
    *args,
    mode: Mode,
    rngs: dict | None = None,
    observe: Callable[[nn.BatchNorm, jax.Array], None] | None = None,
    **kwargs,
) -> tuple[Any, dict]:
    """`model.apply` in a given mode.

    A flag of the model that the caller leaves out (train, training, is_training, deterministic,
    use_running_average) is set to evaluation in `TEST` and to training in every other mode, so that layers
    behind `if train:` are reached; whether they draw noise and what BN does follows from `mode` alone. A BN
    constructed with `use_running_average=True`, and a dropout constructed with `deterministic=True`, is
    frozen on purpose: it is left alone, and a warning names it where the mode says otherwise.

    With `update` and running statistics (`LI_ADJUST`) the statistics move towards the moments of the whole
    batch, by the layer's own momentum. A BN that is called twice uses the given statistics both times, and
    both calls move them.

    Args:
      model: any Linen module.
      variables: its variables, `{"params": ..., "batch_stats": ...}`. They are not changed.
      *args: its inputs.
      mode: the three switches.
      rngs: random keys by stream, needed where the mode has noise on.
      observe: called while tracing with every BN module, bound, and its input, before it runs.
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      (output, batch_stats): the statistics after the call, the given ones where `mode` freezes them.

    Raises:
      DropbnError: `variables` lack the statistics of a BN; a layer draws from a stream that has no key; the
        moments of a BN are wanted that is called with a mask.
    """
    names = list(inspect.signature(type(model).__call__).parameters)[1:]
    for flag in (set(names[len(args) :]) & _FLAGS.keys()) - kwargs.keys():
        kwargs[flag] = _FLAGS[flag] != (mode == TEST)
    # nn.jit caches what it traced by the module and what is mutable, not by the mode: a name of our own
    # among the mutable collections keeps this call's trace to itself.
    mutable = ["batch_stats", f"{OURS}call {next(_calls)}"]
    try:
        with nn.intercept_methods(_interceptor(mode, observe)):
            output, updated = model.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)
    except flax.errors.InvalidRngError as error:
        raise DropbnError(f"A layer draws from a random stream that got no key: {error}") from error
    given = flatten_dict(flax.core.unfreeze(variables.get("batch_stats", {})))
    given = {path: leaf for path, leaf in given.items() if not path[-1].startswith(OURS)}
    stats = flatten_dict(flax.core.unfreeze(updated.get("batch_stats", {})))
    for path in [path for path in stats if path[-1] == _MOVED]:
        stats[(*path[:-1], "mean")], stats[(*path[:-1], "var")] = stats.pop(path)
    return output, unflatten_dict(stats if mode.update else stats | given)


# What we put beside a layer's mean and var begins so, and no mode freezes it.
OURS = "dropbn "
# The leaf in which statistics move while the layer still uses the given ones.
_MOVED = OURS + "moved"


def _interceptor(mode, observe):
    active = set()  # Paths being switched: where a subclass calls its parent, both are the same layer.

    def intercept(run, args, kwargs, context):
        module = context.module
        is_norm = isinstance(module, nn.BatchNorm)
        flag = "use_running_average" if is_norm else "deterministic"
        if (
            context.method_name != "__call__"
            or not (is_norm or isinstance(module, (nn.Dropout, Noise)))
            or module.path in active
            # A subclass with a signature of its own: the parent that it calls is switched.
            or flag not in inspect.signature(context.orig_method).parameters
        ):
            return run(*args, **kwargs)
        bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
        active.add(module.path)
        try:
            return (_run_norm if is_norm else _run_noise)(module, run, bound, mode, observe)
        finally:
            active.remove(module.path)

    return intercept


def _run_noise(module, run, bound, mode, _):
    if _is_frozen(module, "deterministic", wanted=not mode.noise):
        return run(*bound.args, **bound.kwargs)
    given_key = bound.arguments.get("rng") is not None
    stock = isinstance(module, nn.Dropout) and module.rate != 0
    if mode.noise and stock and not given_key and not module.has_rng(module.rng_collection):
        # Ours raises by itself; Linen's would silently draw from the params stream.
        raise DropbnError(
            f"Dropout at '{'/'.join(module.path)}' is on but got no random key: "
            f"pass rngs={{'{module.rng_collection}': key}}."
        )
    return _with_flag(module, run, bound, "deterministic", not mode.noise)


def _run_norm(module, run, bound, mode, observe):
    name, x = "/".join(module.path), bound.args[0]
    if not module.has_variable("batch_stats", "mean"):
        raise DropbnError(f"The variables hold no batch_stats for the batch normalization at '{name}'.")
    uses_running = mode.batch_norm == "running"
    adjusts = uses_running and mode.update
    if bound.arguments.get("mask") is not None and (observe or adjusts):
        raise DropbnError(f"The batch normalization at '{name}' is called with a mask: that is not measured.")
    if observe is not None:
        observe(module, x)
    if _is_frozen(module, "use_running_average", wanted=uses_running and not mode.update):
        return run(*bound.args, **bound.kwargs)
    if adjusts:
        running = tuple(module.get_variable("batch_stats", key) for key in ("mean", "var"))
        batch = moments.of(x, module.axis)
        module.put_variable(
            "batch_stats",
            _MOVED,
            tuple(
                module.momentum * old + (1 - module.momentum) * new
                for old, new in zip(
                    module.get_variable("batch_stats", _MOVED, running),
                    (batch.mean, batch.variance),
                    strict=True,
                )
            ),
        )
    return _with_flag(module, run, bound, "use_running_average", uses_running)


def _is_frozen(module, flag, wanted):
    if getattr(module, flag) is not True:
        return False
    if not wanted:
        name = "/".join(module.path)
        warnings.warn(f"'{name}' was constructed with {flag}=True and is left alone.", stacklevel=2)
    return True


def _with_flag(module, run, bound, flag, value):
    """Runs a layer with its flag set to `value`, whether it was given at construction or at the call."""
    bound.arguments[flag] = value
    with _unset(module, flag):
        return run(*bound.args, **bound.kwargs)


@contextlib.contextmanager
def _unset(module, flag):
    # Linen refuses a flag that is given at construction and at the call; modules are frozen
    # dataclasses, so the attribute is set behind their back and put back after the call.
    before = getattr(module, flag)
    object.__setattr__(module, flag, None)
    try:
        yield
    finally:
        object.__setattr__(module, flag, before)
