"""The layers that differ between training and test, and the interception that switches them.

Noises and batch normalizations are found by their class. A type of your own is registered in one line:

    switches.NOISES[nn.MultiHeadDotProductAttention] = switches.Switch("deterministic")
    switches.NORMS[MyBatchNorm] = switches.Switch("train", test=False)

A batch normalization keeps `mean` and `var` in `batch_stats`; its attributes `axis`, `momentum` and `epsilon`
mean what they mean in `flax.linen.BatchNorm`, whose defaults hold where it has none.
"""

import contextlib
import inspect
import warnings
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dropbn.errors import DropbnError
from dropbn.nn.kernels import moments
from dropbn.nn.noise import Noise


class Switch(NamedTuple):
    """How a type of layer is put into test mode.

    Attributes:
      flag: the argument of its `__call__`, and perhaps of its constructor, that says so.
      test: the flag's value in test mode; in training it is `not test`.
    """

    flag: str
    test: bool = True


NOISES: dict[type, Switch] = {nn.Dropout: Switch("deterministic"), Noise: Switch("deterministic")}
NORMS: dict[type, Switch] = {nn.BatchNorm: Switch("use_running_average")}

# What we put beside a layer's mean and var begins so, and no mode freezes it.
OURS = "dropbn "
# The leaf in which statistics move while the layer still uses the given ones.
MOVED = OURS + "moved"
# The leaf with the means and the variances of every call of a layer: each takes the first and puts it last.
BY_CALL = OURS + "by call"


def of(module: nn.Module, kinds: dict[type, Switch]) -> Switch | None:
    """The switch of the module's type or of the nearest of its bases; None where none is registered."""
    return next((kinds[base] for base in type(module).__mro__ if base in kinds), None)


def attribute(norm: nn.Module, name: str):
    """`axis`, `momentum` or `epsilon` of a batch normalization."""
    return getattr(norm, name, getattr(nn.BatchNorm, name))


def name_of(module: nn.Module) -> str:
    """The module's path, joined by "/"; "." is the model itself."""
    return "/".join(module.path) or "."


def is_identity(noise: nn.Module, switch: Switch) -> bool:
    """Whether a noise is known to change nothing, even in training."""
    amount = getattr(noise, "amount", getattr(noise, "rate", None))
    return (isinstance(amount, (int, float)) and amount == 0) or getattr(
        noise, switch.flag, None
    ) is switch.test


def interceptor(mode, observe=None):
    """For `flax.linen.intercept_methods`: every registered layer runs as a `modes.Mode` says."""
    active = set()  # Paths being switched: where a subclass calls its parent, both are the same layer.

    def intercept(run, args, kwargs, context):
        module = context.module
        norm, noise = of(module, NORMS), of(module, NOISES)
        switch = norm or noise
        if (
            context.method_name != "__call__"
            or switch is None
            or module.path in active
            # A subclass with a signature of its own: the parent that it calls is switched.
            or switch.flag not in inspect.signature(context.orig_method).parameters
        ):
            return run(*args, **kwargs)
        bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
        active.add(module.path)
        try:
            if norm:
                return _run_norm(module, run, bound, norm, mode, observe)
            return _run_noise(module, run, bound, noise, mode)
        finally:
            active.remove(module.path)

    return intercept


def _run_noise(module, run, bound, switch, mode):
    if _is_frozen(module, switch, wanted=not mode.noise):
        return run(*bound.args, **bound.kwargs)
    given_key = bound.arguments.get("rng") is not None
    stock = isinstance(module, nn.Dropout) and module.rate != 0
    if mode.noise and stock and not given_key and not module.has_rng(module.rng_collection):
        # Ours raises by itself; Linen's would silently draw from the params stream.
        raise DropbnError(
            f"Dropout at '{name_of(module)}' is on but got no random key: "
            f"pass rngs={{'{module.rng_collection}': key}}."
        )
    return _with_flag(module, run, bound, switch, test=not mode.noise)


def _run_norm(module, run, bound, switch, mode, observe):
    name, x = name_of(module), bound.args[0]
    axis = attribute(module, "axis")
    if not module.has_variable("batch_stats", "mean"):
        raise DropbnError(f"The variables hold no batch_stats for the batch normalization at '{name}'.")
    uses_running = mode.batch_norm == "running"
    if uses_running and module.has_variable("batch_stats", BY_CALL):
        _take_statistics_of_call(module)
    channels = tuple(x.shape[a] for a in ((axis,) if isinstance(axis, int) else axis))
    mean = module.get_variable("batch_stats", "mean")
    if mean.shape != channels:
        raise DropbnError(
            f"The variables do not fit the model: the mean of '{name}' has shape {mean.shape}, the channels "
            f"of its input have {channels}."
        )
    adjusts = uses_running and mode.update
    if bound.arguments.get("mask") is not None and (observe or adjusts):
        raise DropbnError(f"The batch normalization at '{name}' is called with a mask: that is not measured.")
    if observe is not None:
        observe(module, x)
    if _is_frozen(module, switch, wanted=uses_running and not mode.update):
        return run(*bound.args, **bound.kwargs)
    if adjusts:
        running = (mean, module.get_variable("batch_stats", "var"))
        batch, momentum = moments.of(x, axis), attribute(module, "momentum")
        module.put_variable(
            "batch_stats",
            MOVED,
            tuple(
                momentum * old + (1 - momentum) * new
                for old, new in zip(
                    module.get_variable("batch_stats", MOVED, running),
                    (batch.mean, batch.variance),
                    strict=True,
                )
            ),
        )
    return _with_flag(module, run, bound, switch, test=uses_running)


def _take_statistics_of_call(module):
    by_call = module.get_variable("batch_stats", BY_CALL)
    for key, values in zip(("mean", "var"), by_call, strict=True):
        module.put_variable("batch_stats", key, values[0])
    module.put_variable("batch_stats", BY_CALL, tuple(jnp.roll(values, -1, 0) for values in by_call))


def _is_frozen(module, switch, wanted):
    """Whether the layer was constructed in test mode, on purpose; warns where the mode wants another."""
    if getattr(module, switch.flag, None) is not switch.test:
        return False
    if not wanted:
        message = f"'{name_of(module)}' was constructed with {switch.flag}={switch.test} and is left alone."
        warnings.warn(message, stacklevel=2)
    return True


def _with_flag(module, run, bound, switch, test):
    """Runs a layer with its flag set, whether it was given at construction or at the call."""
    bound.arguments[switch.flag] = switch.test if test else not switch.test
    with _unset(module, switch.flag):
        return run(*bound.args, **bound.kwargs)


@contextlib.contextmanager
def _unset(module, flag):
    # Linen refuses a flag that is given at construction and at the call; modules are frozen
    # dataclasses, so the attribute is set behind their back and put back after the call.
    before = getattr(module, flag, None)
    if before is None:
        yield
        return
    object.__setattr__(module, flag, None)
    try:
        yield
    finally:
        object.__setattr__(module, flag, before)
