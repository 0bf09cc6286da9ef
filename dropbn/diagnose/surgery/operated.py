"""A Linen model in which an operation runs in place of each noise."""

import contextlib
import dataclasses
import fnmatch
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
from flax.core import Scope

from dropbn.diagnose import flag_search, interception, linen, registry, tracing
from dropbn.diagnose.flags import flags_of
from dropbn.diagnose.linen import Model
from dropbn.errors import DropbnError, unknown


class NoiseCall(NamedTuple):
    """A call of a noise.

    Attributes:
      name: of the noise.
      module: the noise.
      built_off, called_off: whether its flag was off at construction and at the call; None if not given.
      others: its other arguments, flags included if it is drawn by hand.
      trace: the trace of JAX in which it is called.
      by_hand: whether it is no registered noise; see `dropbn.diagnose.layers.Layers.by_hand`.
      passes: how many of its arguments such a noise returns, as of `dropbn.diagnose.layers.Layers.passes`.
      within: whether the layer does more than add noise; see `dropbn.diagnose.registry.Switch`.
    """

    name: str
    module: nn.Module
    built_off: bool | None
    called_off: bool | None
    others: dict
    trace: Any
    by_hand: bool = False
    passes: int = 0
    within: bool = False

    @property
    def amount_argument(self) -> str | None:
        """The argument of the call that holds the amount; None where it was constructed with one."""
        taken: Any = {name for name, value in self.others.items() if value is not None}
        if registry.amount_of(self.module) is None:
            taken |= inspect.signature(type(self.module).__call__).parameters.keys()
        return next((name for name in registry.AMOUNTS if name in taken), None)

    @property
    def amount(self) -> Any:
        """The amount of the noise; None if there is none."""
        if (name := self.amount_argument) is None:
            return registry.amount_of(self.module)
        default = inspect.signature(type(self.module).__call__).parameters[name].default
        return self.others.get(name, None if default is inspect.Parameter.empty else default)

    def tracers(self) -> list[jax.core.Tracer]:
        """The traced values that the noise needs besides its input."""
        fields = [getattr(self.module, field.name) for field in dataclasses.fields(self.module)]
        return [leaf for leaf in jax.tree.leaves([fields, self.others]) if isinstance(leaf, jax.core.Tracer)]

    def run(self, x: jax.Array, noise: nn.Module | None = None, scope: Scope | None = None) -> jax.Array:
        """Calls the noise, or another in its place, with the flags of this call."""
        noise, off = noise or self.module, self.called_off
        if self.by_hand:
            same = noise if type(noise) is type(self.module) else self.module
            same = same.clone(parent=scope or self.module.scope, name=self.module.name)
            y = type(same).__call__(same, x, **self.others)
            if (y[0] if self.passes else y) is x or type(noise) is type(self.module):
                return y
            off = False
        switch = registry.of(noise, registry.NOISES)
        assert switch is not None  # Only registered noises are put in the place of another.
        flag, test, _ = switch
        built: dict[str, Any] = {}
        if hasattr(noise, flag):
            built = {flag: None if self.built_off is None else test == self.built_off}
        elif off is None:
            off = self.built_off
        noise = noise.clone(parent=scope or self.module.scope, name=self.module.name, **built)
        # A subclass may have another signature: its nearest parent that takes the flag is called.
        takes = (c for c in type(noise).__mro__ if flag in inspect.signature(c.__call__).parameters)
        function = next(takes).__call__
        others = self.others
        if type(noise) is not type(self.module):  # The other's own arguments, such as an amount.
            taken = inspect.signature(function).parameters.keys() - {flag}
            others = {name: others[name] for name in others.keys() & taken}
        return function(noise, x, **others, **({} if off is None else {flag: test == off}))


def turned_off(call: NoiseCall, x: jax.Array) -> jax.Array:
    """The operation that calls a noise in test mode."""
    if call.by_hand:
        return x
    return call._replace(built_off=True, called_off=None).run(x)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Hides a model from Linen, which would give a module in an attribute a name and a scope.

    `nn.share_scope` undoes neither the name nor the keys that the model's own attributes would have got.
    """

    model: nn.Module

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise DropbnError(
                f"A {type(self.model).__name__} is no module. If it is a pair, change both of its models."
            )


class Operated(nn.Module):
    """A model that hands each call of a noise to `operation` instead of running it.

    Attributes:
      hidden: the model.
      operation: takes a `NoiseCall` and the noise's input, and returns its output.
      noises: patterns; each must match the name of a noise.
      moves: (noise, target) pairs, see `move`.
    """

    hidden: Hidden
    operation: Callable[[NoiseCall, jax.Array], jax.Array]
    noises: tuple[str, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()

    @property
    def __wrapped__(self) -> nn.Module:
        return self.hidden.model

    def wrapping(self, model: nn.Module) -> nn.Module:
        """The same operation on another model."""
        return self.clone(hidden=Hidden(model))

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.hidden.model
        if model.scope is None:
            model = model.copy(parent=self.scope)
        # nn.jit caches traces by the flags of the scope, among others: a fresh flag gets a fresh trace.
        scope: Any = model.scope
        scope.flags = scope.flags.copy({_fresh(): True})
        root: tuple[str, ...] = model.path
        calls: dict[str, NoiseCall | None] = {}
        # The noises that are drawn by hand, and the draws that nothing here reaches.
        by_hand, unswitched = _by_hand(*model.unbind(), args, kwargs, self.is_initializing())
        if unswitched and not (self.noises or self.moves):
            message = f"Random draws that belong to no noise of their own stay: {'; '.join(unswitched)}."
            warnings.warn(message, stacklevel=2)
        survey = functools.partial(_survey, *model.unbind(), {*scope.rngs, "params", "dropout"}, by_hand)
        ahead = functools.cache(lambda: survey(args, kwargs))

        def put(name, target, y):
            for noise in [noise for noise, place in self.moves if place == name]:
                if call := calls.get(noise) or ahead().get(noise):
                    needs = call.tracers()
                    # A value from outside the model is the same object in every trace of the model.
                    if needs and call.trace != target.scope.trace_level:
                        again = survey(args, kwargs)[noise].tracers()
                        if any(one is not other for one, other in zip(needs, again, strict=True)):
                            raise _unseen(noise, name)
                    y = _put(call, y, name, target, (*root, *noise.split("/")))
            return y

        with _operating(self.operation, calls, root, put, by_hand):
            output = model(*args, **kwargs)
        if self._refusal(calls):
            # Perhaps only training reaches the name. If training needs more arguments, that is no error here.
            try:
                calls = survey(*_in_training(model, args, kwargs)) | calls
            except Exception:
                return output
            if refusal := self._refusal(calls):
                raise refusal
        return output

    def _refusal(self, calls):
        # A noise without an amount can be moved.
        noises = [name for name, call in calls.items() if call and (self.moves or call.amount is not None)]
        for pattern in self.noises:
            if not fnmatch.filter(noises, pattern):
                return unknown("noise", pattern, noises)
        targets = (target for _, target in self.moves if target not in calls)
        return next((unknown("layer", target, calls) for target in targets), None)


def _survey(model, variables, streams, by_hand, args, kwargs):
    """The calls in a trace of the model with its noise off; nothing is computed."""

    def run():
        rngs = dict.fromkeys(streams, jax.random.key(0))
        model.apply(variables, *args, rngs=rngs, mutable=flax.core.DenyList(_fresh()), **kwargs)

    calls: dict[str, NoiseCall | None] = {}
    with interception.hidden(), _turn(()), _operating(turned_off, calls, by_hand=by_hand):
        jax.eval_shape(run)
    return calls


def _by_hand(model, variables, args, kwargs, initializing):
    """The names of the noises that are drawn by hand, and where draws stand that belong to none."""
    signature = inspect.signature(type(inspect.unwrap(model)).__call__)

    def found():
        called, known = Model.of(model), {*flags_of(signature.parameters)}

        def without(flags):
            bound = signature.bind(model, *args, **kwargs)
            for flag in flags & bound.arguments.keys():
                del bound.arguments[flag]
            return bound.args[1:], bound.kwargs

        if not called.is_told:
            given = signature.bind(model, *args, **kwargs).arguments
            bools = {name for name, value in given.items() if isinstance(value, bool)}
            known |= {*flag_search.find(called, *tracing.abstract(without(known | bools)))}
        given = without(known)
        layers = called.layers_of(called.shapes(*given) if initializing else variables, *given)
        stay = layers.unswitched + layers.draws_in_both
        return {tracing.name_of(path): number for path, number in layers.passes.items()}, stay

    # A thread of its own has no interceptors, and none of the traces in which the model is called.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(found).result()
        except Exception:  # It cannot be traced in both modes, so only registered noises are known.
            return {}, []


def _fresh(numbers=itertools.count()):
    return f"{registry.OURS}surgery {next(numbers)}"


def _in_training(model, args, kwargs):
    """The arguments of a call, with the model's flags set to training."""
    signature = inspect.signature(type(inspect.unwrap(model)).__call__)
    bound = signature.bind(model, *args, **kwargs)
    bound.arguments |= {flag: training for flag, (training, _) in flags_of(signature.parameters).items()}
    return bound.args[1:], bound.kwargs


# The surgeries that may still act on the noise that is being called, outermost first. The innermost acts; the
# noise that it calls instead is what the next one finds in its model.
_turns: ContextVar[tuple] = ContextVar("turns", default=())


@contextlib.contextmanager
def _turn(surgeries):
    token = _turns.set(surgeries)
    try:
        yield
    finally:
        _turns.reset(token)


@contextlib.contextmanager
def _operating(operation, calls, root=(), put=lambda name, module, y: y, by_hand=MappingProxyType({})):
    """Hands noises to `operation` and outputs to `put`; notes in `calls` the call of each noise, or None."""
    me, running = object(), set()

    def intercept(run, args, kwargs, context):
        module, turns = context.module, _turns.get()
        if context.method_name != "__call__" or me not in turns:
            return run(*args, **kwargs)
        name = "/".join(module.path[len(root) :]) or "."
        if linen.holds_nnx(module):
            warnings.warn(
                f"The NNX module at '{name}' is not edited: edit it before it is bridged.", stacklevel=2
            )
        calls.setdefault(name, None)
        # A layer is called twice if a subclass calls its parent, and under nn.remat and nn.jit.
        inner = name in running
        running.add(name)
        try:
            call, x = None, None
            if turns[-1] is me:
                call, x = _noise_call(name, context, args, kwargs, by_hand.get(name))
            if call:
                calls[name] = call._replace(module=module.clone(parent=None))
            with _turn(turns[:-1] if call else turns):
                y = operation(call, x) if call else run(*args, **kwargs)
            if call and call.passes and type(y) is not tuple:
                y = (y, *list(call.others.values())[: call.passes - 1])
        finally:
            if not inner:
                running.remove(name)
        with _turn(turns[: turns.index(me)]):
            return y if inner else put(name, module, y)

    with _turn((*_turns.get(), me)), nn.intercept_methods(intercept):
        yield


def _noise_call(name, context, args, kwargs, passes):
    """The `NoiseCall` of a noise and its input; None for both if the layer is no noise.

    `passes` is that of a noise drawn by hand, None of another layer.
    """
    switch = registry.of(context.module, registry.NOISES)
    signature = inspect.signature(context.orig_method)
    is_registered = switch is not None and switch.flag in signature.parameters
    if passes is None and not is_registered:
        return None, None
    (_, x), *rest = signature.bind(*args, **kwargs).arguments.items()
    others, trace = dict(rest), context.module.scope.trace_level
    if switch is None:
        return NoiseCall(name, context.module, None, None, others, trace, by_hand=True, passes=passes), x
    flags = getattr(context.module, switch.flag, None), others.pop(switch.flag, None)
    built_off, called_off = (None if flag is None else flag == switch.test for flag in flags)
    return NoiseCall(name, context.module, built_off, called_off, others, trace, within=switch.within), x


def _unseen(noise, target):
    return DropbnError(
        f"'{noise}' cannot be moved to '{target}': its amount or its key is computed inside the model, where "
        "the target cannot see it. Pass it in from outside."
    )


def _put(call, y, name, target, path):
    """Runs a moved noise on the output y of the module `target`."""
    if not isinstance(y, jax.Array):
        raise DropbnError(
            f"'{call.name}' cannot be moved to '{name}', whose output is no array but a {type(y).__name__}: "
            "choose a layer that returns one array."
        )
    # Every call gets its own key, and the path that the noise had, so that its name is still the old one.
    scope = target.scope.push(registry.OURS + call.name, reuse=True)
    scope.path = path
    moved = call.run(y, scope=scope)
    return moved[0] if call.passes else moved
