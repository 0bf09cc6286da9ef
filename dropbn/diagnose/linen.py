"""A Linen model and how it is called: what the tools ask of a model."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict

from dropbn.diagnose import flags, interception, layers, outputs, registry, tracing
from dropbn.diagnose.call import Call
from dropbn.diagnose.flags import flags_of
from dropbn.diagnose.interception import TEST, Mode, Observe
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.tracing import MissingKey, Path, abstract, flat_stats, split
from dropbn.errors import DropbnError

_MISFITS = (
    flax.errors.ApplyScopeInvalidVariablesStructureError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
    flax.errors.ScopeVariableNotFoundError,
)
_calls = itertools.count()
# What users give as a model: a module, or one for training and one for test.
ModelOrPair = nn.Module | tuple[nn.Module, nn.Module]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
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
    def of(cls, model: ModelOrPair, call: Mapping[str, Any] | Call = Call()) -> "Model":
        """The model that a tool was given, a module or a pair of them, with the tool's keywords.

        Raises:
          DropbnError: something else; keywords that the model does not take.
        """
        pair = model if isinstance(model, tuple) else (model, model)
        if len(pair) != 2 or not all(isinstance(each, nn.Module) for each in pair):
            raise DropbnError(
                f"A {type(model).__name__} is neither a Linen module nor a pair (for training, for test)."
            )
        call = call if isinstance(call, Call) else Call.of(call)
        found = cls(*pair, call, isinstance(model, tuple))
        found._refuse_unknown()
        if isinstance(model, tuple) or flags_of(found.parameters):
            return found
        return cls(flags.with_fields(model, testing=False), flags.with_fields(model, testing=True), call)

    @property
    def key(self) -> tuple:
        # What the user has told decides whether the model is refused.
        return self.train, self.test, self.is_pair, self.call.key, tuple(sorted(self.call.rngs or ()))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.key == other.key

    def with_rngs(self, rngs: Mapping[str, jax.Array]) -> "Model":
        """The same model with other random keys."""
        return dataclasses.replace(self, call=dataclasses.replace(self.call, rngs=rngs))

    @property
    def name(self) -> str:
        return type(inspect.unwrap(self.train)).__name__

    def apply(
        self,
        variables: dict,
        x: Any,
        mode: Mode,
        rngs: Mapping | None = None,
        observe: Observe | None = None,
        retrace: bool = False,
    ) -> tuple[Any, dict]:
        """(what the model returns, batch_stats) for the inputs of a batch; see `dropbn.diagnose.modes.apply`.

        Args:
          variables: the model's; they are not changed.
          x: the inputs of a batch, an array or a tree of them.
          mode: the three switches.
          rngs: random keys by stream.
          observe: see `interception.interceptor`.
          retrace: trace each block under `nn.jit`, even if one with the same attributes was traced before.
        """
        return self.run(variables, *self.arguments(x), mode, rngs, observe, retrace)

    def run(
        self,
        variables: dict,
        args: tuple,
        kwargs: dict,
        mode: Mode,
        rngs: Mapping | None = None,
        observe: Observe | None = None,
        retrace: bool = False,
    ) -> tuple[Any, dict]:
        """As `apply`, given the positional and keyword arguments without flags."""
        always_on = left_out = frozenset[Path]()
        if not mode.is_training:
            found = self.layers_of(variables, args, kwargs)
            if any(use.test for use in found.norms.values()):
                self.refuse_one_mode(found)
            if found.unswitched and not mode.noise and mode != TEST:
                _warn_unswitched(found.unswitched)
            always_on = found.always_on
            left_out = frozenset(found.by_hand.values()) if mode != TEST and not mode.noise else left_out
        interceptor = interception.interceptor(mode, always_on, observe, left_out=left_out)
        output, updated = self.run_under(variables, args, kwargs, mode == TEST, rngs, interceptor, retrace)
        given = {path: leaf for path, leaf in flat_stats(variables).items() if not _is_ours(path)}
        stats = flat_stats(updated)
        for path in [path for path in stats if registry.MOVED in path]:
            stats[*path[:-2], path[-1]] = stats.pop(path)
        return output, unflatten_dict(stats if mode.update else stats | given)

    def run_under(
        self,
        variables: dict,
        args: tuple,
        kwargs: dict,
        testing: bool,
        rngs: Mapping | None,
        interceptor: Callable,
        retrace: bool = False,
        replaces_flags: bool = False,
        keeps_stats: bool = False,
    ) -> tuple[Any, dict]:
        """(output, updated collections) of a run under an interceptor; see `_bound` for `replaces_flags`.

        With `keeps_stats`, `batch_stats` is immutable. Some models tell test mode by that.
        """
        module, args, kwargs = self._bound(args, kwargs, testing, replaces_flags)
        # nn.jit caches what it traced by the module and what is mutable, not by the mode: a name of our own
        # among the immutable collections keeps this call's trace to itself.
        own = f"{registry.OURS}call {next(_calls)}"
        denied = ("params", "intermediates", *["batch_stats"] * keeps_stats, _Unlike(own) if retrace else own)
        mutable = flax.core.DenyList(denied)
        with _sentences(), nn.intercept_methods(interceptor):
            method = functools.partial(_call, self.call.method or "__call__", kwargs=kwargs)
            return nn.apply(method, module, mutable=mutable)(variables, *args, rngs=rngs)

    def shapes(self, args: tuple, kwargs: dict) -> dict:
        """The shapes of the variables that `init` makes for these inputs, given without flags."""
        arrays, rebuild = split((args, kwargs))

        def init(arrays, rngs):
            args, kwargs = rebuild(arrays)
            module, args, kwargs = self._bound(args, kwargs, testing=False, replaces_flags=True)
            method = functools.partial(_call, self.call.method or "__call__", kwargs=kwargs)
            with _sentences():
                return nn.init(method, module)(rngs, *args)

        return flax.core.unfreeze(tracing.shapes(self.name, init, arrays, ["params"]))

    def _bound(self, args, kwargs, testing, replaces_flags=False):
        """The module and all arguments, in training or in test mode.

        A flag that the call gives and that says the other mode is refused. With `replaces_flags` it is
        replaced, because both modes are traced.
        """
        args, kwargs = (*args, *self.call.args), {**kwargs, **self.call.kwargs}
        if replaces_flags:
            known = flags_of(self.parameters)
            kwargs = {name: value for name, value in kwargs.items() if value not in known.get(name, ())}
        return self.test if testing else self.train, args, kwargs | self._flags(testing, args, kwargs)

    @functools.cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of the method that is called, without the module."""
        module, method = inspect.unwrap(self.train), self.call.method or "__call__"
        function = method if callable(method) else getattr(type(module), method, None)
        if function is None:
            raise DropbnError(f"{self.name} has no method {method!r}.")
        return dict(list(inspect.signature(function).parameters.items())[1:])

    def arguments(self, x: Any) -> tuple[tuple, dict[str, Any]]:
        """(args, kwargs) for the inputs of a batch, without flags."""
        return self.call.arguments(x, self.parameters)

    def _flags(self, testing, args, kwargs):
        """The arguments that say training, or test: known flags that the call leaves out, then its own."""
        module = inspect.unwrap(self.test if testing else self.train)
        found = flags.left_out(module, self.parameters, args, kwargs, testing)
        found |= (self.call.test_kwargs if testing else self.call.train_kwargs) or {}
        try:
            inspect.Signature(list(self.parameters.values())).bind(*args, **{**kwargs, **found})
        except TypeError as error:
            raise DropbnError(
                f"{self.name}({', '.join(self.parameters)}) cannot be traced with these inputs: {error}. Say "
                "by inputs=, args= or kwargs= what it gets."
            ) from error
        return found

    def layers(self, variables: dict, x: Any) -> Layers:
        """The registered layers, and what the model itself does with them; nothing is computed."""
        return self.layers_of(variables, *self.arguments(x))

    def layers_of(self, variables: dict, args: tuple, kwargs: dict) -> Layers:
        """As `layers`, given the positional and keyword arguments without flags."""
        stats = {path: leaf for path, leaf in flat_stats(variables).items() if not _is_ours(path)}
        if "batch_stats" in variables:
            variables = {**variables, "batch_stats": unflatten_dict(stats)}
        return layers.find(self, *abstract((variables, args, kwargs)))

    def with_output(self, layers: Layers, fits: Callable[[Any], bool]) -> "Model":
        """The same model with the array chosen that is its output; see `outputs.choose`.

        It is this model if the call says which, or if that cannot be told.
        """
        if self.call.outputs is not None or (chosen := outputs.choose(*layers.returned, fits)) is None:
            return self
        return dataclasses.replace(self, call=dataclasses.replace(self.call, outputs=chosen))

    def output_shape(self, layers: Layers) -> jax.ShapeDtypeStruct:
        """The shape of the model's output in test mode."""
        return jax.eval_shape(self.call.output, layers.returned[1])

    def rngs(self, layers: Layers) -> dict[str, jax.Array]:
        """The keys of the call, by default one for each stream: key 0 of "dropout" and so on."""
        if self.call.rngs is not None:
            return dict(self.call.rngs)
        streams = ["dropout", *(stream for stream in layers.streams if stream != "dropout")]
        return {stream: jax.random.key(number) for number, stream in enumerate(streams)}

    def has_one_mode(self, layers: Layers) -> bool:
        """Whether nothing tells training from test mode."""
        uses, module = [*layers.noises.values(), *layers.norms.values()], inspect.unwrap(self.train)
        told = (
            self.is_pair
            or self.call.train_kwargs is not None
            or self.call.test_kwargs is not None
            or self.train != self.test
            # One that the model was constructed with is not for the caller to tell.
            or any(getattr(module, flag, None) is None for flag in flags_of(self.parameters))
        )
        return bool(uses) and not told and all(use.train == use.test for use in uses)

    def refuse_one_mode(self, layers: Layers) -> None:
        """Raises where nothing tells training from test mode."""
        if self.has_one_mode(layers):
            raise DropbnError(
                f"Which argument of {self.name}({', '.join(self.parameters)}) says training? No name is "
                "known. Give it by train_kwargs={'name': value} and test_kwargs={'name': value}, or give a "
                "pair of models, (for training, for test)."
            )

    def _refuse_unknown(self):
        if any(each.kind is each.VAR_KEYWORD for each in self.parameters.values()):
            return
        call = self.call
        for name in {**call.kwargs, **(call.train_kwargs or {}), **(call.test_kwargs or {})}:
            if name not in self.parameters:
                fields = ", ".join(field.name for field in dataclasses.fields(Call))
                raise DropbnError(
                    f"{self.name} takes no argument {name!r}. It takes ({', '.join(self.parameters)}); the "
                    f"tool itself takes {fields}, and what its documentation names."
                )


@contextlib.contextmanager
def _sentences():
    """Turns errors of Flax and JAX in a call of the model into sentences."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        stream = re.search(r'PRNG for "(.*?)"', str(error))
        raise MissingKey(
            f"A layer draws from a random stream that got no key: {error}", stream[1] if stream else ""
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
    except ValueError as error:
        if "broadcasted variable" not in str(error):
            raise
        raise DropbnError(
            "nn.scan broadcasts batch_stats that its steps would move or measure: give it "
            "variable_carry='batch_stats', or variable_axes={'batch_stats': 0} for one layer per step."
        ) from error


def _warn_unswitched(draws):
    message = f"Random draws that belong to no registered noise stay on in this mode: {'; '.join(draws)}."
    warnings.warn(message, stacklevel=2)


def _is_ours(path):
    return any(key.startswith(registry.OURS) for key in path[-2:])


class _Unlike(str):
    """A name whose hash is new each time, so that no cache finds it."""

    def __hash__(self):
        return next(_calls)


def _call(method, module, *args, kwargs):
    if callable(method):
        return method(module, *args, **kwargs)
    return getattr(module, method)(*args, **kwargs)
