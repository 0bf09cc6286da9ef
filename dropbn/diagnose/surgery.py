"""Change the noise, or its place, in a Linen model one did not write.

>>> import flax.linen as nn
>>> from dropbn.diagnose import surgery
>>> from dropbn.nn import noise
>>> model = nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=False), nn.BatchNorm(False)])
>>> gentle = surgery.swap_noise(model, to=noise.Uout(0.1))
>>> behind = surgery.move(gentle, {"layers_1": "layers_2"})

The result is called as the model is and has its variables, so a checkpoint of the one loads into the other;
it may be operated on again, and `dropbn.diagnose.modes` switches its noise. Noises are what `registry.NOISES`
holds, named by their path in the model, joined by "/". One with neither a `rate` nor a `beta` (attention, a
random activation) can be turned off, and is left alone otherwise. A name that only training reaches is known
if the model's flag has one of the names that `dropbn.diagnose.modes` sets. Methods other than `__call__` are
not offered. A block under `nn.jit` is traced anew at every call: put the whole step under `jax.jit`.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import glob
import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax

from dropbn.diagnose import modes, noise_flow, registry
from dropbn.diagnose.noise_flow import marks
from dropbn.errors import DropbnError, unknown
from dropbn.nn.noise import Dropout


def swap_noise(
    model: nn.Module, to: nn.Module | None = None, *, matched: type[nn.Module] | None = None
) -> nn.Module:
    """Replaces every noise; one that was constructed with `deterministic=True` stays off.

    Args:
      model: any Linen module.
      to: the noise that takes the place of each, such as `Uout(0.1)`.
      matched: instead of `to`, a class: each noise is replaced by the one of this class with its s2 = Var[m],
        `broadcast_dims` and `rng_collection`.

    Raises:
      DropbnError: not one of `to` and `matched`, or no noise. At the call: a class that does not reach the s2
        of a layer, as `Uout` beyond 1/3.
    """
    if (to is None) == (matched is None):
        raise DropbnError("swap_noise takes a noise, to=Uout(0.1), or a class of noises, matched=Uout.")
    given, kind = (to, type(to)) if matched is None else (matched, matched)
    if not (isinstance(kind, type) and set(kind.__mro__) & registry.NOISES.keys() and _amount(kind)):
        raise DropbnError(
            f"swap_noise takes to=Uout(0.1) or matched=Uout, a noise with an amount: got {given}."
        )

    def swap(call, x):
        if _amount(type(call.module)):
            return call.run(x, to or _match(call, matched))
        warnings.warn(f"'{call.name}' has neither rate nor beta and is not swapped.", stacklevel=2)
        return call.run(x)

    return _Operated(_Hidden(model), swap)


def without_noise(model: nn.Module) -> nn.Module:
    """Keeps every noise in test mode, whatever the model's flags or `dropbn.diagnose.modes` say.

    Args:
      model: any Linen module.
    """
    return _Operated(_Hidden(model), _off)


def with_rates(model: nn.Module, rates: Mapping[str, Any]) -> nn.Module:
    """Sets the rate (or the beta) of some noises.

    Args:
      model: any Linen module.
      rates: amount, possibly traced, by pattern, as in `{"block1/*": 0.1}`, with the wildcards of `fnmatch`.
        Of several patterns that match, the last counts.

    Raises:
      DropbnError: an amount outside [0, 1]. At the call: a pattern that matches no noise.
    """
    rates = dict(rates)
    for rate in rates.values():
        Dropout(rate, parent=None)  # Refuses what is not in [0, 1].

    def set_rate(call, x):
        matching = [rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(call.name, pattern)]
        field, module = _amount(type(call.module)), call.module
        if not (matching and field):
            return call.run(x)
        if type(module) is nn.Dropout and isinstance(matching[-1], jax.Array):
            # Linen's asks whether its rate is 0, which a traced one cannot answer. Ours has its masks.
            module = Dropout(0, module.broadcast_dims, rng_collection=module.rng_collection, parent=None)
        return call.run(x, module.clone(**{field: matching[-1]}))

    return _Operated(_Hidden(model), set_rate, tuple(rates))


def move(model: nn.Module, moves: Mapping[str, str]) -> nn.Module:
    """Puts noises on the outputs of other layers, and the identity where they stood.

    A moved noise keeps its name, and runs with the flag with which the model calls it at its old place. Where
    that comes after the target, the model is first traced, without computing, to know the flag; observers
    of `dropbn.diagnose.modes.apply` see that too.

    Args:
      model: any Linen module.
      moves: target by noise: the layer, mostly a batch normalization, whose output gets the noise, at every
        call. "." is the model itself.

    Raises:
      DropbnError: at the call: an unknown name; an output that is not one array; a noise whose amount or key
        is computed inside the model, where the target cannot see it.
    """
    moves = dict(moves)

    def lift(call, x):
        return x if call.name in moves else call.run(x)

    return _Operated(_Hidden(model), lift, tuple(map(glob.escape, moves)), tuple(moves.items()))


def move_to_last_bn(model: nn.Module, *inputs, variables: dict | None = None, **kwargs) -> nn.Module:
    """Moves every noise that shifts a BN onto the output of the first BN behind it where it shifts none.

    That is the last BN of the noise's branch where a skip is added behind it, otherwise the last BN of the
    net. By Proposition 1 of Kim et al. (2023), dropout there equals dropout behind the ReLU that follows. Of
    several noises with the same target the last is kept and the others get rate 0.

    Args:
      model: any Linen module.
      *inputs, variables, **kwargs: see `dropbn.diagnose.lint.check`; nothing is computed.

    Returns:
      The model itself where no noise reaches a BN but into a skip.

    Raises:
      DropbnError: the model cannot be traced; no BN is left behind which a noise shifts none.
    """
    marked = marks.trace(model, *inputs, variables=variables, **kwargs)
    flows = noise_flow.follow(marked, probe_norms=True)
    harmed = {}
    for (source, norm), carried in flows.reached.items():
        if carried.way != noise_flow.Way.SKIP:
            harmed.setdefault(source, []).append(norm)
    moves = {}
    for noise in marked.noises:
        if noise in harmed:
            target = next((norm for norm in flows.behind[noise] if norm not in harmed), None)
            if target is None:
                raise DropbnError(f"No batch normalization behind '{noise}' is the last of its branch.")
            moves[noise] = target
    kept = {target: noise for noise, target in moves.items()}
    dropped = {glob.escape(noise): 0.0 for noise in moves if noise not in kept.values()}
    if dropped:
        model = with_rates(model, dropped)
    return move(model, {noise: target for target, noise in kept.items()}) if kept else model


def _amount(kind: type) -> str | None:
    """The field of a class of noises that holds the amount."""
    return next((field for field in ("rate", "beta") if field in kind.__dataclass_fields__), None)


def _match(call, kind):
    """The noise of class `kind` with the s2 of the one that is called."""
    module = call.module
    s2 = module.s2 if hasattr(module, "s2") else Dropout(module.rate, parent=None).s2
    amount = 1 - 1 / (1 + s2) if _amount(kind) == "rate" else (3 * s2) ** 0.5
    alike = {"broadcast_dims", "rng_collection"} & kind.__dataclass_fields__.keys()
    alike = {field: getattr(module, field) for field in alike if hasattr(module, field)}
    try:
        return kind(**{_amount(kind): amount}, **alike, parent=None)
    except DropbnError as error:
        reached = f"The noise at '{call.name}' has s2 = {s2:.3g}, which {kind.__name__} does not reach."
        raise DropbnError(f"{reached} {error}") from error


class _Call(NamedTuple):
    """A noise's call: name, module, if it was built or called in test mode, other arguments, JAX's trace."""

    name: str
    module: nn.Module
    built_off: bool | None
    called_off: bool | None
    others: dict
    trace: Any

    def tracers(self):
        """What the noise needs besides its input and is not known yet."""
        fields = [getattr(self.module, field.name) for field in dataclasses.fields(self.module)]
        return [leaf for leaf in jax.tree.leaves([fields, self.others]) if isinstance(leaf, jax.core.Tracer)]

    def run(self, x, noise=None, scope=None):
        """Calls the noise, or another one in its place, with the flags of this call."""
        noise = noise or self.module
        flag, test = registry.of(noise, registry.NOISES)
        built, off = {}, self.called_off
        if hasattr(noise, flag):
            built = {flag: None if self.built_off is None else test == self.built_off}
        elif off is None:
            off = self.built_off
        noise = noise.clone(parent=scope or self.module.scope, name=self.module.name, **built)
        # Of a subclass with a signature of its own, the parent that it calls.
        takes = (c for c in type(noise).__mro__ if flag in inspect.signature(c.__call__).parameters)
        return next(takes).__call__(noise, x, **self.others, **({} if off is None else {flag: test == off}))


def _off(call, x):
    return call._replace(built_off=True, called_off=None).run(x)


@dataclasses.dataclass(frozen=True)
class _Hidden:
    """Keeps a model from Linen, which would give a module that is an attribute a name and a scope.

    `nn.share_scope` takes back neither the name nor the keys that the model's own attributes have got.
    """

    model: nn.Module


class _Operated(nn.Module):
    """A model whose calls of noises are given to `operation`, which calls another in their place."""

    hidden: _Hidden
    operation: Callable[[_Call, jax.Array], jax.Array]
    noises: tuple[str, ...] = ()  # Patterns, each of a noise that the model must have.
    moves: tuple[tuple[str, str], ...] = ()

    @property
    def __wrapped__(self) -> nn.Module:
        return self.hidden.model

    @nn.compact
    def __call__(self, *args, **kwargs):
        model = self.hidden.model
        if model.scope is None:
            model = model.copy(parent=self.scope)
        # nn.jit caches what it traced by the module and the flags of its scope, among others.
        model.scope.flags = model.scope.flags.copy({_fresh(): True})
        root, calls = model.path, {}
        survey = functools.partial(_survey, *model.unbind(), {*model.scope.rngs, "params", "dropout"})
        ahead = functools.cache(lambda: survey(args, kwargs))

        def put(name, target, y):
            for noise in [noise for noise, place in self.moves if place == name]:
                if call := calls.get(noise) or ahead().get(noise):
                    needs = call.tracers()
                    # What comes from outside the model is the same object in every trace of it.
                    if needs and call.trace != target.scope.trace_level:
                        again = survey(args, kwargs)[noise].tracers()
                        if any(one is not other for one, other in zip(needs, again, strict=True)):
                            raise _unseen(noise, name)
                    y = _put(call, y, name, target, (*root, *noise.split("/")))
            return y

        with _operating(self.operation, calls, root, put):
            output = model(*args, **kwargs)
        if self._refusal(calls):
            # Perhaps only training reaches it. What training needs beyond these arguments is no error here.
            try:
                calls = survey(*_in_training(model, args, kwargs)) | calls
            except Exception:
                return output
            if refusal := self._refusal(calls):
                raise refusal
        return output

    def _refusal(self, calls):
        noises = [name for name, call in calls.items() if call and _amount(type(call.module))]
        for pattern in self.noises:
            if not fnmatch.filter(noises, pattern):
                return unknown("noise", pattern, noises)
        targets = (target for _, target in self.moves if target not in calls)
        return next((unknown("layer", target, calls) for target in targets), None)


def _survey(model, variables, streams, args, kwargs):
    """The calls in a run of the model that computes nothing, with its noise off."""

    def run():
        rngs = dict.fromkeys(streams, jax.random.key(0))
        model.apply(variables, *args, rngs=rngs, mutable=flax.core.DenyList(_fresh()), **kwargs)

    calls = {}
    with _turn(()), _operating(_off, calls):
        jax.eval_shape(run)
    return calls


def _fresh(numbers=itertools.count()):
    return f"{registry.OURS}surgery {next(numbers)}"


def _in_training(model, args, kwargs):
    """The arguments of a call, with the model's flags as in training."""
    signature = inspect.signature(type(inspect.unwrap(model)).__call__)
    bound = signature.bind(model, *args, **kwargs)
    bound.arguments |= {flag: on for flag, on in modes.FLAGS.items() if flag in signature.parameters}
    return bound.args[1:], bound.kwargs


# The surgeries that may still act on a noise that is called now, outermost first. The innermost acts, and
# what it calls instead is the noise of the model that the next one was given.
_turns: ContextVar[tuple] = ContextVar("turns", default=())


@contextlib.contextmanager
def _turn(surgeries):
    token = _turns.set(surgeries)
    try:
        yield
    finally:
        _turns.reset(token)


@contextlib.contextmanager
def _operating(operation, calls, root=(), put=lambda name, module, y: y):
    """Gives noises to `operation` and outputs to `put`; `calls` gets every name, of noises with the call."""
    me, running = object(), set()

    def intercept(run, args, kwargs, context):
        module, turns = context.module, _turns.get()
        if context.method_name != "__call__" or me not in turns:
            return run(*args, **kwargs)
        name = "/".join(module.path[len(root) :]) or "."
        calls.setdefault(name, None)
        # One layer is called twice where a subclass calls its parent, and under nn.remat and nn.jit.
        inner = name in running
        running.add(name)
        try:
            call, x = _noise_call(name, context, args, kwargs) if turns[-1] is me else (None, None)
            if call:
                calls[name] = call._replace(module=module.clone(parent=None))
            with _turn(turns[:-1] if call else turns):
                y = operation(call, x) if call else run(*args, **kwargs)
        finally:
            if not inner:
                running.remove(name)
        with _turn(turns[: turns.index(me)]):
            return y if inner else put(name, module, y)

    with _turn((*_turns.get(), me)), nn.intercept_methods(intercept):
        yield


def _noise_call(name, context, args, kwargs):
    """The call of a noise and its input."""
    switch = registry.of(context.module, registry.NOISES)
    signature = inspect.signature(context.orig_method)
    if switch is None or switch.flag not in signature.parameters:
        return None, None
    (_, x), *others = signature.bind(*args, **kwargs).arguments.items()
    others = dict(others)
    flags = getattr(context.module, switch.flag, None), others.pop(switch.flag, None)
    built_off, called_off = (None if flag is None else flag == switch.test for flag in flags)
    return _Call(name, context.module, built_off, called_off, others, context.module.scope.trace_level), x


def _unseen(noise, target):
    return DropbnError(
        f"'{noise}' cannot be moved to '{target}': its amount or its key is computed inside the model, where "
        "the target cannot see it. Let it come from outside."
    )


def _put(call, y, name, target, path):
    """The moved noise of a call, on the output y of the module `target`."""
    if not isinstance(y, jax.Array):
        raise DropbnError(
            f"'{call.name}' cannot be moved to '{name}', whose output is no array but a {type(y).__name__}."
        )
    # A key for every call, and the path that the noise had: it is still the one of that name.
    scope = target.scope.push(registry.OURS + call.name, reuse=True)
    scope.path = path
    return call.run(y, scope=scope)
