"""Run any Flax model with dropout, BN's source and BN's update switched separately.

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
`dropbn.nn.noise`, `flax.linen.BatchNorm` (subclasses included) and other classes of batch normalizations are
reached wherever they stand, also inside `nn.scan`, `nn.remat` and `nn.jit`; `dropbn.diagnose.registry` says
how other types are registered. NNX has the same layers and transformations. A module that draws in training
and gives its first arguments back in test mode, such as drop path, is a noise too. So is one that test mode
does not call. Noise that a model draws elsewhere cannot be switched: it is on in every mode but `TEST`.
`lint` names it.

What the model itself does is the truth. `TRAIN` and `TEST` are its own modes: every layer runs as the model
calls it. In all other modes the model runs as in training. A BN that it freezes in training, with
`use_running_average=True` at construction or at the call, stays frozen there, and a warning names it. A noise
that is on in its test mode too stays on.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from dropbn.diagnose import entry
from dropbn.diagnose.call import Call
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.given import check_inputs
from dropbn.diagnose.interception import LI_ADJUST, TEST, TRAIN, Mode
from dropbn.errors import DropbnError, shown

__all__ = ["LI_ADJUST", "TEST", "TRAIN", "Mode", "apply"]


@entry.holds_state
def apply(
    model: ModelOrPair,
    variables: dict,
    *args: Any,
    mode: Mode,
    observe: Callable[[nn.BatchNorm, jax.Array], None] | None = None,
    **call: Any,
) -> tuple[Any, dict]:
    """`model.apply` in a given mode.

    A flag of the model that the caller leaves out (`dropbn.diagnose.flags.FLAGS`: train, deterministic, ...)
    is set to test in `TEST` and to training in every other mode, so that layers behind `if train:` are
    reached; whether they draw noise and what BN does follows from `mode`.

    With `update` and running statistics (`LI_ADJUST`) the statistics move towards the moments of the whole
    batch, by the layer's own momentum. A BN that is called twice uses the given statistics both times, and
    both calls move them.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test).
      variables: its variables, `{"params": ..., "batch_stats": ...}`. They are not changed. Updates of other
        collections are discarded.
      *args: its inputs.
      mode: the three switches.
      observe: called while tracing with every BN module, bound, and its input, before it runs.
      **call: how the model is called, `rngs` (needed where the mode has noise on), `method` and so on; see
        `dropbn.diagnose.call.Call`. Other names are keyword arguments of the model.

    Returns:
      (output, batch_stats): the statistics after the call, the given ones where `mode` freezes them.

    Raises:
      DropbnError: `variables` do not fit the model, or lack the statistics of a BN; arguments that do not
        fit it; a layer draws from a stream that has no key; nn.scan broadcasts statistics that are moved
        or measured.
    """
    if not isinstance(mode, Mode):
        raise DropbnError(
            f"mode={shown(repr(mode))} is no Mode: give modes.TRAIN, modes.TEST or modes.Mode(noise, "
            "batch_norm, update); an argument `mode` of the model goes into kwargs=."
        )
    for x in args[:1]:
        check_inputs(x)
    given = Call.of(call)
    watch = None if observe is None else lambda layer, norm, x, mask: observe(layer.module, x)
    called, variables = entry.model_of(model, variables, given)
    return called.run(variables, args, {}, mode, given.rngs, watch)
