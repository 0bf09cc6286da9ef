"""A Linen model behind the seam: how it runs, and what its layers are."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import flax.linen as nn

from dropbn.diagnose import flags, model, registry, tracing
from dropbn.diagnose.call import Call
from dropbn.diagnose.flags import FLAGS, flags_of
from dropbn.diagnose.seam import Interceptor
from dropbn.diagnose.tracing import MissingKey, Path, split
from dropbn.errors import DropbnError

_MISFITS = (
    flax.errors.ApplyScopeInvalidVariablesStructureError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
    flax.errors.ScopeVariableNotFoundError,
)
_calls = itertools.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Model(model.Model):
    """A Linen model and how it is called. Models with equal modules and arguments are equal.

    Attributes:
      train, test: the modules that run in training and in test mode; mostly one and the same.
      call: how they are called.
      is_pair: whether the user gave both.
    """

    train: nn.Module
    test: nn.Module
    call: Call
    is_pair: bool = False

    @classmethod
    def of(cls, model: Any, call: Mapping[str, Any] | Call = Call()) -> "Model":
        """The model that a tool was given, a module or a pair of them, with the tool's keywords.

        Raises:
          DropbnError: something else; keywords that the model does not take.
        """
        pair = model if isinstance(model, tuple) else (model, model)
        if len(pair) != 2 or not all(isinstance(each, nn.Module) for each in pair):
            if classes := [each.__name__ for each in pair if isinstance(each, type)]:
                raise DropbnError(
                    f"The model is the class {classes[0]}: give an instance, {classes[0]}(...)."
                )
            raise DropbnError(
                f"A {type(model).__name__} is neither a Linen or NNX module nor a pair of Linen modules (for "
                "training, for test)."
            )
        call = call if isinstance(call, Call) else Call.of(call)
        found = cls(*pair, call, isinstance(model, tuple))
        found.refuse_unknown()
        if isinstance(model, tuple) or flags_of(found.parameters):
            return found
        return cls(flags.with_fields(model, testing=False), flags.with_fields(model, testing=True), call)

    @property
    def key(self) -> tuple:
        # What the user has told decides whether the model is refused.
        return self.train, self.test, self.is_pair, self.call.key, tuple(sorted(self.call.rngs or ()))

    @property
    def name(self) -> str:
        return type(inspect.unwrap(self.train)).__name__

    def function(self) -> Callable | None:
        method = self.call.method or "__call__"
        return method if callable(method) else getattr(type(inspect.unwrap(self.train)), method, None)

    def own_flags(self, testing: bool) -> Mapping[str, Any]:
        module = inspect.unwrap(self.test if testing else self.train)
        return {flag: getattr(module, flag, None) for flag in FLAGS}

    @property
    def is_told(self) -> bool:
        return self.is_pair or self.train != self.test or super().is_told

    def intercepting(self, interceptor: Interceptor) -> contextlib.AbstractContextManager:
        return intercepting(interceptor)

    def run_under(
        self,
        variables: dict,
        args: tuple,
        kwargs: dict,
        testing: bool,
        rngs: Mapping | None,
        interceptor: Interceptor,
        retrace: bool = False,
        replaces_flags: bool = False,
        keeps_stats: bool = False,
    ) -> tuple[Any, dict]:
        module = self.test if testing else self.train
        args, kwargs = self.bound(args, kwargs, testing, replaces_flags)
        # nn.jit caches what it traced by the module and what is mutable, not by the mode: a name of our own
        # among the immutable collections keeps this call's trace to itself.
        own = f"{registry.OURS}call {next(_calls)}"
        denied = ("params", "intermediates", *["batch_stats"] * keeps_stats, _Unlike(own) if retrace else own)
        mutable = flax.core.DenyList(denied)
        with _sentences(), self.intercepting(interceptor):
            method = functools.partial(_call, self.call.method or "__call__", kwargs=kwargs)
            return nn.apply(method, module, mutable=mutable)(variables, *args, rngs=rngs)

    def shapes(self, args: tuple, kwargs: dict) -> dict:
        # Those that `init` makes.
        arrays, rebuild = split((args, kwargs))

        def init(arrays, rngs):
            args, kwargs = rebuild(arrays)
            args, kwargs = self.bound(args, kwargs, testing=False, replaces_flags=True)
            method = functools.partial(_call, self.call.method or "__call__", kwargs=kwargs)
            with _sentences():
                return nn.init(method, self.train)(rngs, *args)

        return flax.core.unfreeze(tracing.shapes(self.name, init, arrays, ["params"]))


def intercepting(interceptor: Interceptor, around: Path = ()) -> contextlib.AbstractContextManager:
    """Within it, calls of modules go through the interceptor; `around` is the path of what holds them."""

    def intercept(run, args, kwargs, context):
        if context.module.scope is None:  # It is not part of the model that runs.
            return run(*args, **kwargs)
        layer = _Layer(context, around)
        if layer.is_call and holds_nnx(context.module):
            from dropbn.diagnose.nnx import bridge

            return bridge.run_nnx_within(interceptor, run, args, kwargs, context.module, layer.path)
        return interceptor(run, args, kwargs, layer)

    return nn.intercept_methods(intercept)


def holds_nnx(module: nn.Module) -> bool:
    """Whether a module is a bridge to an NNX module."""
    return "flax.nnx" in sys.modules and isinstance(module, sys.modules["flax.nnx"].bridge.ToLinen)


class _Layer:
    """A bound Linen module in a call, as `flax.linen.intercept_methods` gives it."""

    def __init__(self, context: Any, around: Path) -> None:
        self.module, self._context, self._around = context.module, context, around

    @property
    def path(self) -> Path:
        return *self._around, *self.module.path

    @property
    def is_call(self) -> bool:
        return self._context.method_name == "__call__"

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self._context.orig_method)

    @property
    def missing_stream(self) -> str:
        stream = self.module.rng_collection
        return "" if self.module.has_rng(stream) else stream

    def has(self, name: str) -> bool:
        return self.module.has_variable("batch_stats", name)

    def get(self, name: str, default: Any = None) -> Any:
        return self.module.get_variable("batch_stats", name, default)

    def put(self, name: str, value: Any) -> None:
        self.module.put_variable("batch_stats", name, value)

    def leaves(self) -> dict[str, dict[str, Any]]:
        return self.module.variables

    def without_place(self, fields: Mapping[str, Any]) -> nn.Module:
        return self.module.clone(parent=None, name=None, **fields)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turns errors of Flax and JAX in a call of the model into sentences."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        stream = re.search(r'PRNG for "(.*?)"', str(error))
        raise MissingKey(
            f"A layer draws from a random stream that got no key: {error}", stream[1] if stream else ""
        ) from error
    except KeyError as error:  # Of an NNX module within.
        stream = re.search(r"No RngStream named '(.*?)'", str(error))
        if stream is None:
            raise
        raise MissingKey(
            f"An NNX module within draws from a stream without a key: {error}", stream[1]
        ) from error
    except _MISFITS as error:
        sentence = str(error).splitlines()[0].split(" (https")[0]
        raise DropbnError(f"The variables do not fit the model: {sentence}") from error
    except NameError as error:
        if "unbound axis name" not in str(error):
            raise
        raise DropbnError(
            f"The model computes over an axis of devices that does not exist here ({error}): construct it "
            "without the name of the axis. Only batch normalizations may keep it."
        ) from error
    except TypeError as error:
        if registry.MOVED not in str(error):
            raise
        raise DropbnError(
            "nn.scan carries batch_stats from step to step, so no statistics move beside those in use, as in "
            "modes.LI_ADJUST and the recipe li2018_moving: take another mode or recipe."
        ) from error
    except ValueError as error:
        if "broadcasted variable" not in str(error):
            raise
        raise DropbnError(
            "nn.scan broadcasts batch_stats that its steps would move or measure: give it "
            "variable_carry='batch_stats', or variable_axes={'batch_stats': 0} for one layer per step."
        ) from error


class _Unlike(str):
    """A name whose hash is new each time, so that no cache finds it."""

    def __hash__(self):
        return next(_calls)


def _call(method, module, *args, kwargs):
    if callable(method):
        return method(module, *args, **kwargs)
    return getattr(module, method)(*args, **kwargs)
