"""Noises that NNX modules draw by hand: found without a call of the model, and edited.

Surgery knows no inputs of the model. So each module that may draw is traced alone, with arrays of usual
shapes. It is a noise if it draws in training and gives its input back in test mode.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dropbn.diagnose import registry
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.nnx.model import Model
from dropbn.diagnose.tracing import name_of
from dropbn.errors import DropbnError

# The attribute of a noise that holds the one in its place.
SWAPPED = "swapped_noise"
_RNGS = (nnx.Rngs, nnx.RngStream)


class Found(NamedTuple):
    """What draws by hand in a model.

    Attributes:
      noises: by name.
      others: where draws stand that belong to no noise of their own.
      unknown: the names of modules that hold a random stream and cannot be run alone.
    """

    noises: dict[str, nnx.Module]
    others: list[str]
    unknown: list[str]

    def warn(self) -> None:
        """Names the draws that no edit reaches."""
        if self.others:
            message = f"Random draws that belong to no noise of their own stay: {'; '.join(self.others)}."
            warnings.warn(message, stacklevel=4)
        if self.unknown:
            message = (
                "These modules hold a random stream, and no edit reaches what they may draw from it, because "
                f"they do not run alone on an array: {'; '.join(self.unknown)}."
            )
            warnings.warn(message, stacklevel=4)


def find(model: nnx.Module) -> Found:
    """The noises that the modules of a model draw by hand."""
    found = Found({}, [], [])
    for path, module in nnx.iter_modules(model):
        if not _may_draw(module):
            continue
        name = name_of(tuple(map(str, path)))
        if (layers := _layers(module)) is None:
            found.unknown.extend([name] * _holds_stream(module))
        elif ("module",) in layers.by_hand.values():
            found.noises[name] = module
        else:
            of_module = [where for where in layers.unswitched + layers.draws_in_both if _stands_in(where)]
            found.others.extend(f"{name} {where.partition(' ')[2]}" for where in of_module)
    return found


def leave_out(noise: nnx.Module) -> None:
    """Makes a noise give its input back."""
    object.__setattr__(noise, "__class__", _left_out(type(noise)))


def put_in_place(old: nnx.Module, new: Any) -> None:
    """Makes a noise give what another makes of its input, where it is on itself."""
    new.rngs, new.deterministic = _stream(old, new.rng_collection), False
    setattr(old, SWAPPED, new)
    object.__setattr__(old, "__class__", _swapped(type(old)))


def takes_input_alone(noise: nnx.Module) -> bool:
    """Whether a noise can be called with nothing but its input."""
    required = [
        each
        for each in [*inspect.signature(type(noise).__call__).parameters.values()][2:]
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    return not required and _holds_stream(noise)


def _may_draw(module):
    bases = {*type(module).__mro__}
    is_called = any("__call__" in vars(base) for base in bases)
    if not is_called or bases & (registry.NOISES.keys() | registry.NORMS.keys()):
        return False
    return _holds_stream(module) or "rngs" in inspect.signature(type(module).__call__).parameters


def _holds_stream(module):
    return any(isinstance(value, _RNGS) for value in vars(module).values())


def _stands_in(where):
    """Whether a draw is the module's own, not one of its parts'."""
    return where.partition(" ")[0] == "module"


def _layers(module: Any) -> Layers | None:
    """The layers of a module that runs alone; None if it does not run on an array of a usual shape."""
    kind: Any = type(module)
    called, variables = Model.of(_alone(kind)(module))
    sizes = [leaf.shape[-1] for leaf in jax.tree.leaves(variables) if leaf.ndim]
    channels = sizes[0] if sizes else 4
    for shape in ((8, 8, 8, channels), (8, 8, channels), (8, channels)):
        try:
            return called.layers(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
        except DropbnError:
            continue
    return None


@functools.lru_cache(maxsize=256)
def _alone(kind: type) -> type:
    """A model of one module, which is called as the module is."""

    def __init__(self: Any, module: nnx.Module) -> None:
        self.module = module

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    return _subclass(nnx.Module, __call__, kind, __init__=__init__)


@functools.lru_cache(maxsize=256)
def _left_out(kind: type) -> type:
    return _subclass(kind, lambda self, x, *_, **__: x, kind)


@functools.lru_cache(maxsize=256)
def _swapped(kind: type) -> type:
    def __call__(self: Any, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        if super(own, self).__call__(x, *args, **kwargs) is x:
            return x
        new = getattr(self, SWAPPED)
        return new(x) if new.rngs is not None else new(x, rngs=kwargs.get("rngs"))

    own = _subclass(kind, __call__, kind)
    return own


def _subclass(base: Any, function: Callable, like: Any, **names: Any) -> Any:
    """A subclass of `base` with the name of the class `like`, whose `__call__` has its signature."""
    names |= {"__call__": functools.wraps(like.__call__)(function), "__module__": like.__module__}
    return type(base)(like.__name__, (base,), names)


def _stream(noise, collection):
    """The stream from which a noise draws; None if it gets one at the call."""
    held = next((value for value in vars(noise).values() if isinstance(value, _RNGS)), None)
    if not isinstance(held, nnx.Rngs):
        return nnx.data(held)
    streams = dict(held.items())
    return streams.get(collection) or streams.get("default") or next(iter(streams.values()))
