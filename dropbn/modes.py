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
inside `nn.scan`, `nn.remat` and `nn.jit`; `dropbn.switches` says how other types are registered. Noise that a
model draws outside such a module cannot be reached: it is on in every mode but `TEST`, which is the model's
own test mode.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn import switches
from dropbn.errors import DropbnError


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
_MISFITS = (
    flax.errors.ApplyScopeInvalidVariablesStructureError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
    flax.errors.ScopeVariableNotFoundError,
)
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
      DropbnError: `variables` do not fit the model, or lack the statistics of a BN; a layer draws from a
        stream that has no key; the moments of a BN are wanted that is called with a mask.
    """
    names = list(inspect.signature(type(inspect.unwrap(model)).__call__).parameters)[1:]
    for flag in (set(names[len(args) :]) & _FLAGS.keys()) - kwargs.keys():
        if getattr(model, flag, None) is None:  # One that the model was constructed with is given already.
            kwargs[flag] = _FLAGS[flag] != (mode == TEST)
    # nn.jit caches what it traced by the module and what is mutable, not by the mode: a name of our own
    # among the mutable collections keeps this call's trace to itself.
    mutable = ["batch_stats", f"{switches.OURS}call {next(_calls)}"]
    try:
        with nn.intercept_methods(switches.interceptor(mode, observe)):
            output, updated = model.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)
    except flax.errors.InvalidRngError as error:
        raise DropbnError(f"A layer draws from a random stream that got no key: {error}") from error
    except _MISFITS as error:
        sentence = str(error).split(" (https")[0]
        raise DropbnError(f"The variables do not fit the model: {sentence}") from error
    given = flatten_dict(flax.core.unfreeze(variables.get("batch_stats", {})))
    given = {path: leaf for path, leaf in given.items() if not path[-1].startswith(switches.OURS)}
    stats = flatten_dict(flax.core.unfreeze(updated.get("batch_stats", {})))
    for path in [path for path in stats if path[-1] == switches.MOVED]:
        stats[(*path[:-1], "mean")], stats[(*path[:-1], "var")] = stats.pop(path)
    return output, unflatten_dict(stats if mode.update else stats | given)
