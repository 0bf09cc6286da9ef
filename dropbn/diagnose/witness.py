"""A second witness: does the model do in training anything that was not seen in it?

Noises and batch normalizations are found by their types and in the traced model. The outputs do not depend on
how they were found. With every known noise off and BN on its running statistics, training must give the same
outputs for two keys, and those of test mode. Three forward passes of one batch tell.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dropbn.diagnose import interception, predictor
from dropbn.diagnose.cache import cached
from dropbn.diagnose.call import fold_in
from dropbn.diagnose.interception import TEST
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.model import Model
from dropbn.diagnose.seam import Layer, first
from dropbn.diagnose.tracing import name_of

# A smaller share of the outputs explains no gap, and rounding in float32 stays far below. On a CPU the two
# programs of a network without anything unseen gave equal outputs (20 layers in bfloat16, a PreResNet-38); a
# device may sum in another order.
_SMALL = 0.01
# So many machine epsilons of the coarsest floats in a model are accepted: rounding adds up over layers.
_ROUNDINGS = 16
# How many values of an array are compared to find where a difference begins.
_COMPARED = 4096


def unseen(model: Model, variables: dict, x: Any, layers: Layers) -> str:
    """What training does besides the known noises and BN, as a sentence; "" if nothing was found.

    Two arrays of outputs differ if the RMS of their difference is above 1 % of the RMS of the outputs about
    their mean over the batch, and above 16 machine epsilons of the coarsest floats that the model computes. A
    model with random draws that cannot be switched, or that are on in test mode too, is not judged: its
    outputs differ in any case.

    Args:
      model: a model and how it is called.
      variables: its variables.
      x: the inputs of a batch.
      layers: of the model.
    """
    if layers.draws.keys() - layers.by_hand or any(use.test for use in layers.noises.values()):
        return ""
    tolerance = max(_SMALL, _ROUNDINGS * layers.epsilon)
    run, rngs = _program(model), [fold_in(model.rngs(layers), number) for number in (0, 1)]
    first, again = (np.asarray(run(variables, x, keys)) for keys in rngs)
    if (share := _difference(first, again)) > tolerance:
        where = _beginning(tolerance, *(_watched(model, variables, x, keys, False) for keys in rngs))
        return (
            f"With every known noise off, two runs of training give outputs that differ by {share:.0%} of "
            f"their spread: a noise was not seen{where}."
        )
    tested = np.asarray(predictor.program(model, TEST)(variables, x, rngs[0]))
    if tested.shape == first.shape and (share := _difference(tested, first)) > tolerance:
        watched = (_watched(model, variables, x, rngs[0], testing) for testing in (True, False))
        return (
            "With every known noise off and BN on its running statistics, training gives outputs that differ "
            f"from those of test mode by {share:.0%} of their spread: something else than noise and BN tells "
            "the modes apart, or a noise whose key does not come from the call was not seen"
            f"{_beginning(tolerance, *watched)}."
        )
    return ""


def _run(model, variables, x, rngs, testing):
    layers = model.layers(variables, x)
    interceptor = interception.interceptor(TEST, layers.always_on, left_out=layers.passes)
    returned, _ = model.run_under(variables, *model.arguments(x), testing, rngs, interceptor)
    return model.call.output(returned)


@cached
def _program(model):
    """The outputs with known noises off and BN on running statistics, while the flags say training."""

    @jax.jit
    def program(variables, x, rngs):
        return _run(model, variables, x, rngs, testing=False).astype(jnp.float32)

    return program


def _difference(wanted, found):
    """The RMS of the difference over that of what is wanted, about its mean over the batch."""
    wanted, found = (np.asarray(each, np.float64) for each in (wanted, found))
    spread = wanted - wanted.mean(0) if wanted.ndim and len(wanted) > 1 else wanted
    scale = np.sqrt(np.mean(spread**2)) or np.sqrt(np.mean(wanted**2)) or 1.0
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / scale)


def _watched(model, variables, x, rngs, testing):
    """Some values of what enters and leaves each layer, by (sentence, name, call), in order.

    The model runs without compilation. Layers within `nn.scan`, `nn.jit` and the like have no values then.
    """
    seen: dict[tuple[str, str, int], np.ndarray] = {}
    calls: collections.Counter[str] = collections.Counter()

    def watch(run: Callable, args: tuple, kwargs: dict, layer: Layer) -> Any:
        name = name_of(layer.path)
        calls[name] += 1
        call = calls[name]

        def note(where, value):
            if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer):
                flat = np.asarray(value, np.float64).ravel()
                seen[where, name, call] = flat[:: len(flat) // _COMPARED + 1]

        note("before", first(args, kwargs))
        y = run(*args, **kwargs)
        note("in", y)
        return y

    with model.intercepting(watch):
        _run(model, variables, x, rngs, testing)
    return seen


def _beginning(tolerance, wanted, found):
    """Where the second of two runs begins to differ from the first, "" if nothing is known of it."""
    for (where, name, call), values in found.items():
        other = wanted.get((where, name, call))
        if other is not None and other.shape == values.shape:
            scale = np.sqrt(np.mean(other**2)) or 1.0
            if np.sqrt(np.mean((values - other) ** 2)) > tolerance * scale:
                return f", {where} '{name}'"
    return ""
