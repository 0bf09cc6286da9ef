"""The edits: each returns the model with an operation that runs in the place of its noises."""

import fnmatch
import glob
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from dropbn.diagnose import noise_flow, registry
from dropbn.diagnose.noise_flow import marks
from dropbn.diagnose.surgery.operated import Hidden, Operated, amount_field, turned_off
from dropbn.errors import DropbnError
from dropbn.nn import laws
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
    if not (isinstance(kind, type) and set(kind.__mro__) & registry.NOISES.keys() and amount_field(kind)):
        raise DropbnError(
            f"swap_noise takes to=Uout(0.1) or matched=Uout, a noise with an amount: got {given}."
        )

    def swap(call, x):
        if amount_field(type(call.module)):
            return call.run(x, to or _match(call, matched))
        warnings.warn(f"'{call.name}' has neither rate nor beta and is not swapped.", stacklevel=2)
        return call.run(x)

    return Operated(Hidden(model), swap)


def without_noise(model: nn.Module) -> nn.Module:
    """Keeps every noise in test mode, whatever the model's flags or `dropbn.diagnose.modes` say.

    Args:
      model: any Linen module.
    """
    return Operated(Hidden(model), turned_off)


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
        laws.Dropout(rate)  # Refuses what is not in [0, 1].

    def set_rate(call, x):
        matching = [rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(call.name, pattern)]
        field, module = amount_field(type(call.module)), call.module
        if not (matching and field):
            return call.run(x)
        if type(module) is nn.Dropout and isinstance(matching[-1], jax.Array):
            # Linen's asks whether its rate is 0, which a traced one cannot answer. Ours has its masks.
            module = Dropout(0, module.broadcast_dims, rng_collection=module.rng_collection, parent=None)
        return call.run(x, module.clone(**{field: matching[-1]}))

    return Operated(Hidden(model), set_rate, tuple(rates))


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

    return Operated(Hidden(model), lift, tuple(map(glob.escape, moves)), tuple(moves.items()))


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
    followed = noise_flow.follow(marked, probe_norms=True)
    harmed = {}
    for (source, norm), carried in followed.reached.items():
        if carried.way != noise_flow.Way.SKIP:
            harmed.setdefault(source, []).append(norm)
    moves = {}
    for noise in marked.noises:
        if noise in harmed:
            target = next((norm for norm in followed.behind[noise] if norm not in harmed), None)
            if target is None:
                raise DropbnError(f"No batch normalization behind '{noise}' is the last of its branch.")
            moves[noise] = target
    kept = {target: noise for noise, target in moves.items()}
    dropped = {glob.escape(noise): 0.0 for noise in moves if noise not in kept.values()}
    if dropped:
        model = with_rates(model, dropped)
    return move(model, {noise: target for target, noise in kept.items()}) if kept else model


def _match(call, kind):
    """The noise of class `kind` with the s2 of the one that is called."""
    module, field = call.module, amount_field(kind)
    s2 = module.s2 if hasattr(module, "s2") else laws.Dropout(module.rate).s2
    law = laws.Dropout if field == "rate" else laws.Uout
    alike = {"broadcast_dims", "rng_collection"} & kind.__dataclass_fields__.keys()
    alike = {field: getattr(module, field) for field in alike if hasattr(module, field)}
    try:
        return kind(**{field: law.of_s2(s2).amount}, **alike, parent=None)
    except DropbnError as error:
        reached = f"The noise at '{call.name}' has s2 = {s2:.3g}, which {kind.__name__} does not reach."
        raise DropbnError(f"{reached} {error}") from error
