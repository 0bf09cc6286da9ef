"""The edits: each returns the model with an operation that runs in place of its noises."""

import fnmatch
import glob
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from dropbn.diagnose import entry, noise_flow, registry
from dropbn.diagnose.entry import AnyModule, ModelOrPair
from dropbn.diagnose.noise_flow import marks
from dropbn.diagnose.registry import amount_field
from dropbn.diagnose.surgery.operated import Hidden, Operated, turned_off
from dropbn.diagnose.tracing import name_of
from dropbn.errors import DropbnError
from dropbn.nn import laws
from dropbn.nn.noise import AlphaDropout, Dropout


def swap_noise(model: AnyModule, to: AnyModule | None = None, *, matched: type | None = None) -> AnyModule:
    """Replaces every noise; one that was built with `deterministic=True`, or whose amount is 0, stays off.

    Args:
      model: any module of Linen or NNX.
      to: the noise that replaces each, such as `Uout(0.1)`, of the model's API.
      matched: a class of noises, instead of `to`. It replaces each noise by one with the same s2 = Var[m],
        `broadcast_dims` and `rng_collection`.

    Raises:
      DropbnError: both or neither of `to` and `matched` were given, or what was given is no noise with an
        amount, or one of the other API; `matched` is `AlphaDropout`, which has no s2. At the call of a Linen
        model, and at once for an NNX model: a layer has no s2, or one that the
        class does not reach, such as `Uout` beyond 1/3.
    """
    if (to is None) == (matched is None):
        raise DropbnError("swap_noise takes a noise, to=Uout(0.1), or a class of noises, matched=Uout.")
    edits, given = entry.surgery_of(model), to if matched is None else matched
    kind: Any = type(to) if matched is None else matched
    if not (isinstance(kind, type) and set(kind.__mro__) & registry.NOISES.keys() and amount_field(kind)):
        raise DropbnError(
            f"swap_noise takes a noise with an amount, to=Uout(0.1) or matched=Uout; got {given}."
        )
    if issubclass(kind, nn.Module) is entry.is_nnx(model):
        api, package = ("NNX", "dropbn.nn.nnx.noise") if entry.is_nnx(model) else ("Linen", "dropbn.nn.noise")
        raise DropbnError(f"The model is of {api}, the noise {kind.__name__} is not: take one of {package}.")
    if edits:
        return edits.swap_noise(model, to, matched)
    if matched is not None and issubclass(matched, AlphaDropout):
        raise DropbnError("AlphaDropout has no s2 to match: give swap_noise a noise, to=AlphaDropout(0.1).")

    def swap(call, x):
        if call.within:
            if call.amount and not call.called_off and not call.built_off:
                warnings.warn(f"'{call.name}' has noise within it and is not swapped.", stacklevel=2)
            return call.run(x)
        if call.amount is None and (matched or not call.by_hand):
            warnings.warn(f"'{call.name}' has neither rate nor beta and is not swapped.", stacklevel=2)
            return call.run(x)
        if laws.is_number(call.amount) and call.amount == 0:
            return call.run(x)
        return call.run(x, to or _match(call, matched))

    return _operated(model, swap)


def without_noise(model: AnyModule) -> AnyModule:
    """Keeps every noise off, whatever the model's flags or `dropbn.diagnose.modes` say.

    Args:
      model: any module of Linen or NNX.

    Raises:
      DropbnError: a noise of an NNX model has no amount that could be 0.
    """
    if edits := entry.surgery_of(model):
        return edits.without_noise(model)
    return _operated(model, turned_off)


def with_rates(model: AnyModule, rates: Mapping[str, Any]) -> AnyModule:
    """Sets the rate (or the beta) of some noises.

    Args:
      model: any module of Linen or NNX.
      rates: pattern -> amount, possibly traced, as in `{"block1/*": 0.1}`, with the wildcards of `fnmatch`.
        If several patterns match a noise, the last one counts.

    Raises:
      DropbnError: an amount outside [0, 1]. At the call of a Linen model, and at once for an NNX model: a
        pattern that matches no noise.
    """
    rates = dict(rates)
    for rate in rates.values():
        laws.Dropout(rate)  # Refuses what is not in [0, 1].
    if edits := entry.surgery_of(model):
        return edits.with_rates(model, rates)

    def set_rate(call, x):
        matching = [rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(call.name, pattern)]
        if not matching or call.amount is None:
            return call.run(x)
        if argument := call.amount_argument:
            return call._replace(others=call.others | {argument: matching[-1]}).run(x)
        module = call.module
        if type(module) is nn.Dropout and isinstance(matching[-1], jax.Array):
            # Linen's Dropout compares its rate with 0, which fails for a traced rate. Ours draws its masks.
            module = Dropout(0, module.broadcast_dims, rng_collection=module.rng_collection, parent=None)
        return call.run(x, module.clone(**{str(amount_field(type(module))): matching[-1]}))

    return _operated(model, set_rate, tuple(rates))


def move(model: AnyModule, moves: Mapping[str, str]) -> AnyModule:
    """Moves noises to the outputs of other layers, and leaves the identity where they stood.

    A moved noise keeps its name, and the flag with which the model calls it at its old place. If that place
    comes after the target, the model is first traced to learn the flag, which computes nothing. In NNX a
    moved noise becomes a part of the target, "target/moved_noises/0", and obeys train() and eval().

    Args:
      model: any module of Linen or NNX.
      moves: noise -> target, the layer whose output gets the noise at every call, mostly a batch
        normalization. "." is the model itself.

    Raises:
      DropbnError: at the call of a Linen model, and mostly at once for an NNX model: an unknown name; an
        output that is not one array; a noise whose amount or key is computed inside the model, where the
        target cannot see it, or given at the call; a layer that does more than add noise.
    """
    moves = dict(moves)
    if edits := entry.surgery_of(model):
        return edits.move(model, moves)

    def lift(call, x):
        if call.within and call.name in moves:
            raise DropbnError(f"'{call.name}' does more than add noise, so it cannot be moved.")
        return x if call.name in moves else call.run(x)

    return _operated(model, lift, tuple(map(glob.escape, moves)), tuple(moves.items()))


def move_to_last_bn(
    model: ModelOrPair, *inputs: Any, variables: dict | None = None, **call: Any
) -> ModelOrPair:
    """Moves every noise that shifts a BN to the output of the next BN from which it shifts none.

    The target is the last BN of the noise's branch if a skip is added behind it, otherwise the last BN of the
    network. By Proposition 1 of Kim et al. (2023), dropout there equals dropout behind the ReLU that follows.
    If several noises share a target, the last one is kept; the others get rate 0.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules.
      *inputs, variables, **call: see `dropbn.diagnose.lint.check`; nothing is computed.

    Returns:
      The changed model, a pair of a pair; the model itself if noise reaches BNs only through a skip or not at
      all.

    Raises:
      DropbnError: the model cannot be traced, or a noise has no such target.
    """
    called, state = entry.model_to_trace(model, variables, call)
    marked = marks.trace(called, inputs, {}, state)
    followed = noise_flow.follow(marked, probe_norms=True)
    harmed: dict[str, list[str]] = {}
    for (source, norm), carried in followed.reached.items():
        if carried.way != noise_flow.Way.SKIP:
            harmed.setdefault(source, []).append(norm)
    moves = {}
    for source, drawn in followed.noises.items():
        if source in harmed:
            noise = _module_of(source, marked.layers) if drawn.is_drawn else source
            if not noise:
                warnings.warn(f"The noise at '{source}' is no module's and is not moved.", stacklevel=2)
                continue
            target = next((norm for norm in followed.behind[source] if norm not in harmed), None)
            if target is None:
                raise DropbnError(
                    f"Every batch normalization behind '{noise}' leads to another that noise there would "
                    "shift, so none is the last. Lower its rate, or make it 0, by surgery.with_rates."
                )
            moves[noise] = target
    kept = {target: noise for noise, target in moves.items()}
    dropped = {glob.escape(noise): 0.0 for noise in moves if noise not in kept.values()}

    def edited(module):
        module = with_rates(module, dropped) if dropped else module
        return move(module, {noise: target for target, noise in kept.items()}) if kept else module

    return tuple(map(edited, model)) if isinstance(model, tuple) else edited(model)


def _operated(model: Any, operation: Callable, *options: Any) -> nn.Module:
    return Operated(Hidden(model), operation, *options)


def _module_of(source, layers):
    """The name of the module whose noise is drawn at `source`; "" if it is not that of one module."""
    paths = {layers.by_hand.get(where) for where in source.split("; ")}
    path = paths.pop() if len(paths) == 1 else None
    return name_of(path) if path else ""


def _match(call, kind):
    """A noise of class `kind` with the s2 of the noise that is called."""
    module = call.module
    s2 = module.s2 if hasattr(module, "s2") else laws.Dropout(call.amount).s2
    if s2 is None:
        raise DropbnError(
            f"'{call.name}' is {type(module).__name__}, which has no s2 to match: give swap_noise a noise, "
            "to=Uout(0.1)."
        )
    field = str(amount_field(kind))
    law = laws.Uout if field == "beta" else laws.Dropout
    shared = {"broadcast_dims", "rng_collection"} & kind.__dataclass_fields__.keys()
    alike = {name: getattr(module, name) for name in shared if hasattr(module, name)}
    try:
        return kind(**{field: law.of_s2(s2).amount}, **alike, parent=None)
    except DropbnError as error:
        reached = f"The noise at '{call.name}' has s2 = {s2:.3g}, which {kind.__name__} does not reach."
        raise DropbnError(f"{reached} {error}") from error
