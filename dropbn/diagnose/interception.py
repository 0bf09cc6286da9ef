"""The three switches, and how they act on the layers of a model while it runs."""

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dropbn.diagnose import registry
from dropbn.diagnose.norm_search import norm_of
from dropbn.diagnose.norms import Norm
from dropbn.diagnose.registry import BY_CALL, MOVED, NOISES
from dropbn.diagnose.seam import Interceptor, Layer, passed_on
from dropbn.diagnose.tracing import MissingKey, Path, name_of
from dropbn.errors import DropbnError, unknown
from dropbn.nn.kernels import moments
from dropbn.nn.kernels.moments import Moments

Observe = Callable[[Layer, Norm, jax.Array, jax.Array | None], None]


@dataclasses.dataclass(frozen=True)
class Mode:
    """Three switches.

    Attributes:
      noise: dropout and its kin on or off.
      batch_norm: BN normalizes with the statistics of the "batch" or with the "running" ones.
      update: running statistics move towards those of the batch, or stay.

    Raises:
      DropbnError: another value.
    """

    noise: bool
    batch_norm: Literal["batch", "running"]
    update: bool

    def __post_init__(self) -> None:
        if self.batch_norm not in ("batch", "running"):
            raise unknown("batch_norm", self.batch_norm, ("batch", "running"))
        for switch in ("noise", "update"):
            if not isinstance(getattr(self, switch), bool):
                raise DropbnError(f"Mode: {switch} is True or False, got {getattr(self, switch)!r}.")

    @property
    def frozen(self) -> "Mode":
        """This mode without updates of the running statistics."""
        return dataclasses.replace(self, update=False)

    @property
    def is_training(self) -> bool:
        """Whether noise and BN do what the model itself does in training."""
        return self.frozen == TRAIN.frozen


TRAIN = Mode(noise=True, batch_norm="batch", update=True)
TEST = Mode(noise=False, batch_norm="running", update=False)
LI_ADJUST = Mode(noise=False, batch_norm="running", update=True)


def interceptor(
    mode: Mode,
    always_on: frozenset[Path] = frozenset(),
    observe: Observe | None = None,
    note: Callable[[Layer, Norm | None, bool, float], None] | None = None,
    left_out: Mapping[Path, int] = MappingProxyType({}),
) -> Interceptor:
    """For `model.Model.intercepting`: every registered layer runs as a mode says.

    In training, and for `note`, every layer runs as the model calls it. In all other modes a layer that the
    model calls in test mode stays as it is: a BN that is frozen in training, a noise that is off there. The
    others are switched, except for the layers of `always_on`.

    Args:
      mode: the three switches.
      always_on: paths of noises that are on in test mode too, and of BNs that use the batch there.
      observe: called with every BN, what is known of it, its input and its mask or None, before it
        runs.
      note: called with every layer, with what is known of a BN or None, with whether the model has it on (a
        BN is on if it uses the batch), and with the number of values per channel of a BN.
      left_out: paths of modules that give their arguments back instead of running, and how many of them; see
        `layers.Layers.passes`.
    """
    active = set()  # Paths being switched: where a subclass calls its parent, both are the same layer.

    def intercept(run, args, kwargs, layer):
        if _hidden.get() or not layer.is_call or layer.path in active:
            return run(*args, **kwargs)
        if layer.path in left_out:
            return passed_on(args, kwargs, left_out[layer.path])
        norm, noise = norm_of(layer, args, kwargs), registry.of(layer.module, NOISES)
        signature = layer.signature if norm or noise else None
        # A subclass with a signature of its own: the parent that it calls is switched.
        if signature is None or not (norm or (noise and noise.flag in signature.parameters)):
            return run(*args, **kwargs)
        if norm and not norm.is_measured:
            if note:
                note(layer, norm, False, float("inf"))
            return run(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        active.add(layer.path)
        try:
            as_called = mode.is_training or note is not None
            switch = norm.switch if norm else noise
            call = _Call(layer, run, bound, switch, mode, layer.path in always_on, as_called)
            return call.run_norm(norm, observe, note) if norm else call.run_noise(note)
        finally:
            active.remove(layer.path)

    return intercept


_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hides the layers of a model that runs within another from the interceptor of the other."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


class _Call(NamedTuple):
    """A call of a registered layer."""

    layer: Layer
    run: Callable
    bound: inspect.BoundArguments
    switch: registry.Switch | None
    mode: Mode
    always_on: bool
    as_called: bool  # by the model, whatever the mode

    def run_noise(self, note):
        layer, mode, switch = self.layer, self.mode, self.switch
        assert switch is not None  # Only a batch normalization has none.
        off = self._is_off(mode.noise)
        if not self.as_called and not off:
            off = not (mode.noise or self.always_on)
        if off and mode.noise and getattr(layer.module, switch.flag, None) is switch.test:
            _warn_frozen(layer, switch)
        given_key = self.bound.arguments.get("rng") is not None
        is_identity = registry.is_identity(layer.module, switch, self.bound.arguments.get(switch.flag))
        draws = registry.is_affine(layer.module) and not is_identity
        if not off and draws and not given_key and (stream := layer.missing_stream):
            # Linen would silently draw from the params stream.
            raise MissingKey(
                f"{type(layer.module).__name__} at '{name_of(layer.path)}' is on but got no random key: "
                f"pass rngs={{'{stream}': key}}.",
                stream,
            )
        y = self._with_flag(off)
        if note and not is_identity:
            note(layer, None, not off and y is not self.bound.args[0], 1)  # Surgery may have taken it away.
        return y

    def run_norm(self, norm, observe, note):
        layer, mode = self.layer, self.mode
        with _without_unbound_axis(layer.module):
            x, mask = self._checked(norm)
            frozen = self._is_off(mode.batch_norm == "batch")
            if note:
                number = x.size / max(math.prod(norm.channels), 1)
                note(layer, norm, not frozen, number if mask is None else float("inf"))
            switched_off = mode.batch_norm == "running" and not self.always_on
            uses_running = frozen or (switched_off and not self.as_called)
            if uses_running and layer.has(BY_CALL):
                _take_statistics_of_call(layer, norm)
            if observe is not None:
                observe(layer, norm, x, mask)
            if frozen and (mode.update or mode.batch_norm == "batch"):
                _warn_frozen(layer, self.switch)
            elif uses_running and mode.update:
                _move_beside(layer, norm, x, mask)
            return self._with_flag(uses_running)

    def _is_off(self, wanted_on: bool) -> bool:
        """Whether the model calls the layer in test mode; if it does not say, what the mode wants."""
        if self.switch is None:
            return True
        flag, test, _ = self.switch
        asked = self.bound.arguments.get(flag)
        asked = getattr(self.layer.module, flag, None) if asked is None else asked
        return not wanted_on if asked is None or isinstance(asked, jax.core.Tracer) else bool(asked) == test

    def _checked(self, norm):
        """A BN's input and mask."""
        name, x = name_of(self.layer.path), self.bound.args[0]
        if not self.layer.has(norm.mean.name):
            raise DropbnError(f"The variables hold no batch_stats for the batch normalization at '{name}'.")
        channels = tuple(x.shape[a] for a in ((norm.axis,) if isinstance(norm.axis, int) else norm.axis))
        if norm.channels != channels:
            raise DropbnError(
                f"The variables do not fit the model: the mean of '{name}' has shape {norm.channels}, the "
                f"channels of its input have {channels}."
            )
        return x, norm.mask.of(self.bound.arguments)

    def _with_flag(self, test):
        """Runs the layer with its flag set, whether it was given at construction or at the call."""
        fields = {}
        if self.switch:
            flag, value = self.switch.flag, self.switch.test if test else not self.switch.test
            is_argument = flag in self.bound.signature.parameters
            fields = {flag: None if is_argument else value}
            if is_argument:
                self.bound.arguments[flag] = value
        with _attributes(self.layer.module, **fields):
            return self.run(*self.bound.args, **self.bound.kwargs)


def moments_of(layer: Layer, norm: Norm, x: jax.Array, mask: jax.Array | None) -> Moments:
    """Moments of the values from which a BN takes its statistics.

    These are the values of the batch that the mask keeps, over all devices of an axis that the model binds.

    Raises:
      DropbnError: groups of such an axis; complex numbers.
    """
    if jnp.iscomplexobj(x):
        raise DropbnError(
            f"The batch normalization at '{name_of(layer.path)}' takes complex numbers: their moments are "
            "not measured."
        )
    found = moments.of(x, norm.axis, mask)
    module = layer.module
    if getattr(module, "axis_name", None) is None:
        return found
    if getattr(module, "axis_index_groups", None) is not None:
        raise DropbnError(
            f"The batch normalization at '{name_of(layer.path)}' has axis_index_groups over "
            f"'{module.axis_name}', which the model itself binds: moments of groups are not measured."
        )
    return moments.over(found, module.axis_name)


def _move_beside(layer, norm, x, mask):
    """Moves statistics towards those of the batch while the layer still uses the given ones."""
    running = layer.get(MOVED, norm.given(layer))
    batch = norm.remembered(moments_of(layer, norm, x, mask))
    moved = (
        norm.momentum * old + (1 - norm.momentum) * new
        for old, new in zip(norm.split(running), batch, strict=True)
    )
    layer.put(MOVED, norm.joined(running, tuple(moved)))


def _take_statistics_of_call(layer, norm):
    by_call = layer.get(BY_CALL)
    norm.put(layer, [values[0] for values in by_call])
    layer.put(BY_CALL, tuple(jnp.roll(values, -1, 0) for values in by_call))


def _warn_frozen(layer, switch):
    if switch is None:
        message = f"'{name_of(layer.path)}' uses its running statistics in training too and is left alone."
        warnings.warn(message, stacklevel=2)
        return
    how = (
        "was constructed"
        if getattr(layer.module, switch.flag, None) is switch.test
        else "is called in training"
    )
    message = f"'{name_of(layer.path)}' {how} with {switch.flag}={switch.test} and is left alone."
    warnings.warn(message, stacklevel=2)


def _without_unbound_axis(module):
    """The module without its `axis_name` if nothing binds it: the batch is then the global batch."""
    name = getattr(module, "axis_name", None)
    try:
        _ = lax.axis_size(name) if name is not None else None
    except NameError:
        unset = {key: None for key in ("axis_name", "axis_index_groups") if hasattr(module, key)}
        return _attributes(module, **unset)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _attributes(module, **values):
    # Linen refuses a flag that is given at construction and at the call; modules are frozen dataclasses, so
    # attributes are set behind their back and put back after the call.
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    for name in before:
        object.__setattr__(module, name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
