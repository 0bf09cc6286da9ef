"""Modules whose calls go through interceptors, in a copy of an NNX model."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
from flax import nnx

from dropbn.diagnose import registry
from dropbn.diagnose.nnx.graph import Skeleton, split
from dropbn.diagnose.registry import MOVED
from dropbn.diagnose.seam import Interceptor
from dropbn.diagnose.tracing import Path

_interceptors: ContextVar[tuple[Interceptor, ...]] = ContextVar("interceptors", default=())
# (path, name) of the leaves that layers have put in the current run.
_put: ContextVar[set] = ContextVar("put")
_inside: ContextVar[Path] = ContextVar("inside", default=())
_runs = itertools.count()
_PLACE = "_dropbn_place"


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a module stands in its model, and in which run, so that nnx.jit finds no trace of another."""

    path: Path
    run: int
    alone: Skeleton | None = None  # the module itself, if it keeps state and no class is registered


@contextlib.contextmanager
def intercepting(interceptor: Interceptor) -> Iterator[None]:
    """Within it, calls of modules go through the interceptor."""
    token = _interceptors.set((*_interceptors.get(), interceptor))
    try:
        yield
    finally:
        _interceptors.reset(token)


def active() -> tuple[Interceptor, ...]:
    """The interceptors through which calls go, the outermost first."""
    return _interceptors.get()


@contextlib.contextmanager
def noting() -> Iterator[set[tuple[Path, str]]]:
    """Gives the set of what layers put within it, as (path, name)."""
    token = _put.set(set())
    try:
        yield _put.get()
    finally:
        _put.reset(token)


def prepare(model: nnx.Module, extra: Mapping[Path, Any], around: Path = ()) -> None:
    """Gives every module of a copy an intercepted class, and its layers their leaves.

    Leaves must exist before a transformation such as nnx.scan begins.

    Args:
      model: the copy.
      extra: further leaves of `batch_stats`, by path.
      around: the path of what holds the model.
    """
    run, modules = next(_runs), {}
    for place, module in list(nnx.iter_modules(model)):
        own = tuple(map(str, place))
        modules[own], path = module, (*around, *own)
        if isinstance(module, nnx.bridge.ToNNX):
            from dropbn.diagnose.nnx import bridge  # It needs this module.

            setattr(module, bridge.PLACE, _Place(path, run))
            object.__setattr__(module, "__class__", bridge.linen_within(type(module)))
            continue
        alone, stats = None, _stats(module)
        if stats and not registry.of(module, registry.NORMS):
            alone, _ = split(module)
        setattr(module, _PLACE, _Place(path, run, alone))
        if stats and not around:
            setattr(module, MOVED, nnx.BatchStat(stats))
        if any("__call__" in vars(base) for base in type(module).__mro__):
            object.__setattr__(module, "__class__", _intercepted(type(module)))
    for leaf, value in extra.items():
        length = next(number for number in range(len(leaf) - 1, -1, -1) if leaf[:number] in modules)
        _put_into(modules[leaf[:length]], leaf[length:], nnx.BatchStat(value))


def _put_into(node, path, leaf):
    """Puts a leaf into a module, or into the dicts that a bridge has for the modules of Linen."""
    *around, name = path
    for key in around:
        node = node[key] if isinstance(node, dict) else vars(node)[key]
    if isinstance(node, dict):
        node[name] = leaf
    else:
        setattr(node, name, leaf)


@functools.lru_cache(maxsize=1024)
def _intercepted(kind: type) -> type:
    """A subclass whose calls, and those of a registered parent that it calls, go through interceptors."""
    bases: tuple[type, ...] = (kind,)
    switch = registry.of_kind(kind, registry.NORMS) or registry.of_kind(kind, registry.NOISES)
    if switch and switch.flag not in inspect.signature(kind.__call__).parameters:
        # A subclass with a signature of its own: the nearest parent that takes the flag is the layer.
        parents = (base for base in kind.__mro__ if "__call__" in vars(base))
        takes = (base for base in parents if switch.flag in inspect.signature(base.__call__).parameters)
        if (parent := next(takes, None)) is not None:
            bases = (kind, _subclass((parent,), parent.__call__))
    return _subclass(bases, kind.__call__)


def _subclass(bases, function):
    kind = bases[0]
    names = {"__call__": _through_interceptors(function), "__module__": kind.__module__}
    return type(kind)(kind.__name__, bases, names)


def _through_interceptors(function: Callable) -> Callable:
    signature = inspect.signature(function)
    own = signature.replace(parameters=[*signature.parameters.values()][1:])

    @functools.wraps(function)
    def __call__(self, *args, **kwargs):
        layer, run = Layer(self, own), functools.partial(function, self)
        for interceptor in reversed(_interceptors.get()):
            run = functools.partial(_step, interceptor, run, layer)
        outer = _inside.get()
        is_part = layer.path[: len(outer)] == outer
        scope = layer.path[len(outer) :] if is_part else layer.path
        token = _inside.set(layer.path)
        try:
            with jax.named_scope("/".join(scope)) if scope else contextlib.nullcontext():
                return run(*args, **kwargs)
        finally:
            _inside.reset(token)

    return __call__


def _step(interceptor, run, layer, /, *args, **kwargs):
    return interceptor(run, args, kwargs, layer)


class Layer:
    """A module of a copy, in a call; see `dropbn.diagnose.seam.Layer`."""

    is_call = True
    missing_stream = ""  # A stream without a key says so itself.

    def __init__(self, module: nnx.Module, signature: inspect.Signature) -> None:
        self.module, self.signature = module, signature

    @property
    def path(self) -> Path:
        return vars(self.module)[_PLACE].path

    def has(self, name: str) -> bool:
        return isinstance(vars(self.module).get(name), nnx.BatchStat)

    def get(self, name: str, default: Any = None) -> Any:
        if not self.has(name) or (name == MOVED and (self.path, name) not in _put.get()):
            return default
        return vars(self.module)[name].get_value()

    def put(self, name: str, value: Any) -> None:
        _put.get().add((self.path, name))
        if self.has(name):
            vars(self.module)[name].set_value(value)
        else:
            setattr(self.module, name, nnx.BatchStat(value))

    def leaves(self) -> dict[str, dict[str, Any]]:
        if vars(self.module)[_PLACE].alone is None:
            return {"batch_stats": stats} if (stats := _stats(self.module)) else {}
        found = split(self.module)[1]
        return {name: {key: found[name][key] for key in found[name] if key != MOVED} for name in found}

    def without_place(self, fields: Mapping[str, Any]) -> "Alone | None":
        alone = vars(self.module)[_PLACE].alone
        return None if alone is None else Alone(alone, _plain(self.module)).clone(**fields)


class Alone:
    """A module outside of its model, which runs as an unbound Linen module does."""

    def __init__(self, skeleton: Skeleton, fields: Mapping[str, Any]) -> None:
        vars(self).update(fields)
        self._skeleton, self._fields = skeleton, dict(fields)

    def __hash__(self) -> int:
        return hash((self._skeleton, *sorted(self._fields.items(), key=str)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alone) and vars(self) == vars(other)

    def clone(self, **fields: Any) -> "Alone":
        """A copy with other attributes."""
        return Alone(self._skeleton, self._fields | fields)

    def apply(self, variables: dict, *args: Any, mutable: list[str], **kwargs: Any) -> tuple[Any, dict]:
        """(output, the variables of the mutable collections after the call)."""
        module = self._skeleton.merge(variables, {})
        for name, value in self._fields.items():
            object.__setattr__(module, name, value)
        output, updated = module(*args, **kwargs), split(module)[1]
        return output, {name: updated[name] for name in mutable}


def _stats(module):
    """The leaves that a module itself keeps in `batch_stats`."""
    leaves = {name: leaf for name, leaf in vars(module).items() if isinstance(leaf, nnx.BatchStat)}
    return {name: leaf.get_value() for name, leaf in leaves.items() if not name.startswith(registry.OURS)}


def _plain(module):
    """The attributes of a module that are numbers, flags or names."""
    kinds = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds)}
