"""A model and how it is called: what the tools ask of a model, whatever API it is written in."""

import abc
import copy
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import jax
from flax.traverse_util import unflatten_dict

from dropbn.diagnose import flag_search, flags, interception, layer_search, outputs, registry
from dropbn.diagnose.call import Call
from dropbn.diagnose.flags import flags_of
from dropbn.diagnose.interception import TEST, Mode, Observe
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.seam import Interceptor
from dropbn.diagnose.tracing import Path, abstract, flat_stats
from dropbn.errors import DropbnError


class Model(abc.ABC):
    """A model and how it is called. Models that are built alike and called alike are equal.

    Attributes:
      call: how it is called.
      gives: the parameters that are given at every call without being told.
    """

    call: Call
    gives: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def key(self) -> tuple:
        """What it is equal by."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Its class's."""

    @abc.abstractmethod
    def function(self) -> Callable | None:
        """The method that is called, a function of the module; None if there is none of this name."""

    @abc.abstractmethod
    def own_flags(self, testing: bool) -> Mapping[str, Any]:
        """The known flags with which the model was constructed; None is one that it was not."""

    @abc.abstractmethod
    def intercepting(self, interceptor: Interceptor) -> AbstractContextManager:
        """Within it, calls of modules go through an interceptor; that of the outermost comes first."""

    @abc.abstractmethod
    def shapes(self, args: tuple, kwargs: dict) -> dict:
        """The shapes of its variables for these inputs, given without flags."""

    @abc.abstractmethod
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
        """(output, updated collections) of a run in training or in test mode, under an interceptor.

        Args:
          variables, args, kwargs, rngs, retrace: as of `run`.
          testing: whether the model's flags say test mode.
          interceptor: through which the calls of its modules go.
          replaces_flags: a flag of the call that says the other mode is replaced, not refused.
          keeps_stats: `batch_stats` is immutable, if the API knows that. Some models tell test mode by it.
        """

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.key == other.key

    def with_rngs(self, rngs: Mapping[str, jax.Array]) -> "Model":
        """The same model with other random keys."""
        return self._with(rngs=rngs)

    def _with(self, **fields):
        other = copy.copy(self)
        object.__setattr__(other, "call", dataclasses.replace(self.call, **fields))
        return other

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
        always_on, left_out = frozenset[Path](), dict[Path, int]()
        if not mode.is_training:
            found = self.layers_of(variables, args, kwargs)
            if any(use.test for use in found.norms.values()):
                self.refuse_one_mode(found)
            if found.unswitched and not mode.noise and mode != TEST:
                _warn_unswitched(found.unswitched)
            always_on = found.always_on
            left_out = found.passes if mode != TEST and not mode.noise else left_out
        interceptor = interception.interceptor(mode, always_on, observe, left_out=left_out)
        output, updated = self.run_under(variables, args, kwargs, mode == TEST, rngs, interceptor, retrace)
        given = {path: leaf for path, leaf in flat_stats(variables).items() if not _is_ours(path)}
        stats = flat_stats(updated)
        for path in [path for path in stats if registry.MOVED in path]:
            stats[*path[:-2], path[-1]] = stats.pop(path)
        return output, unflatten_dict(stats if mode.update else stats | given)

    @functools.cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of the method that is called, without the module and what the seam itself gives."""
        return {name: each for name, each in self.all_parameters().items() if name not in self.gives}

    def all_parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of the method that is called, without the module."""
        function = self.function()
        if function is None:
            raise DropbnError(f"{self.name} has no method {self.call.method!r}.")
        return dict(list(inspect.signature(function).parameters.items())[1:])

    def arguments(self, x: Any) -> tuple[tuple, dict[str, Any]]:
        """(args, kwargs) for the inputs of a batch, without flags."""
        return self.call.arguments(x, self.parameters)

    def bound(
        self, args: tuple, kwargs: dict, testing: bool, replaces_flags: bool = False
    ) -> tuple[tuple, dict]:
        """All arguments of a call in training or in test mode.

        A flag that the call gives and that says the other mode is refused. With `replaces_flags` it is
        replaced, because both modes are traced.
        """
        args, kwargs = (*args, *self.call.args), {**kwargs, **self.call.kwargs}
        if replaces_flags:
            known = flags_of(self.parameters)
            kwargs = {name: value for name, value in kwargs.items() if value not in known.get(name, ())}
        return args, kwargs | self._flags(testing, args, kwargs)

    def _flags(self, testing, args, kwargs):
        """The arguments that say training, or test: known flags left out, those of the call, or one found."""
        own = self.own_flags(testing)
        found = flags.left_out(own, self.parameters, args, kwargs, testing)
        found |= (self.call.test_kwargs if testing else self.call.train_kwargs) or {}
        if not self.is_told:
            searched = flag_search.find(self, *abstract((args, kwargs)))
            found |= {name: values[testing] for name, values in searched.items()}
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
        return layer_search.find(self, *abstract((variables, args, kwargs)))

    def with_output(self, layers: Layers, fits: Callable[[Any], bool]) -> "Model":
        """The same model with the array chosen that is its output; see `outputs.choose`.

        It is this model if the call says which, or if that cannot be told.
        """
        if self.call.outputs is not None or (chosen := outputs.choose(*layers.returned, fits)) is None:
            return self
        return self._with(outputs=chosen)

    def output_shape(self, layers: Layers) -> jax.ShapeDtypeStruct:
        """The shape of the model's output in test mode."""
        return jax.eval_shape(self.call.output, layers.returned[1])

    def rngs(self, layers: Layers) -> dict[str, jax.Array]:
        """The keys of the call, by default one for each stream: key 0 of "dropout" and so on."""
        if self.call.rngs is not None:
            return dict(self.call.rngs)
        streams = ["dropout", *(stream for stream in layers.streams if stream != "dropout")]
        return {stream: jax.random.key(number) for number, stream in enumerate(streams)}

    @property
    def is_told(self) -> bool:
        """Whether something that is known says training: an argument, a flag, or a pair of models."""
        own = self.own_flags(testing=False)
        return (
            self.call.train_kwargs is not None
            or self.call.test_kwargs is not None
            # One that the model was constructed with is not for the caller to tell.
            or any(own.get(flag) is None for flag in flags_of(self.parameters))
        )

    def telling(self, train_kwargs: Mapping[str, Any], test_kwargs: Mapping[str, Any]) -> "Model":
        """The same model with other arguments that say training, and test."""
        return self._with(train_kwargs=train_kwargs, test_kwargs=test_kwargs)

    def has_one_mode(self, layers: Layers) -> bool:
        """Whether nothing tells training from test mode."""
        uses = [*layers.noises.values(), *layers.norms.values()]
        return bool(uses) and not self.is_told and all(use.train == use.test for use in uses)

    def refuse_one_mode(self, layers: Layers) -> None:
        """Raises where nothing tells training from test mode."""
        if self.has_one_mode(layers):
            raise DropbnError(
                f"Which argument of {self.name}({', '.join(self.parameters)}) says training? No name is "
                "known. Give it by train_kwargs={'name': value} and test_kwargs={'name': value}, or give a "
                "pair of models, (for training, for test)."
            )

    def refuse_unknown(self) -> None:
        """Raises for keywords that the model does not take."""
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


def _warn_unswitched(draws):
    message = f"Random draws that belong to no registered noise stay on in this mode: {'; '.join(draws)}."
    warnings.warn(message, stacklevel=2)


def _is_ours(path):
    return any(key.startswith(registry.OURS) for key in path[-2:])
