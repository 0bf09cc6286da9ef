"""Surgery on an NNX model: edits of a copy of its graph. Parameters keep their paths.

`dropbn.diagnose.surgery` has the functions for both APIs, `by_hand` the noises that modules draw by hand.
"""

import fnmatch
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from dropbn.diagnose import registry
from dropbn.diagnose.nnx import by_hand
from dropbn.diagnose.tracing import name_of
from dropbn.errors import DropbnError, unknown
from dropbn.nn import laws
from dropbn.nn.nnx import noise as noises

# The attribute of a target that holds the noises that were moved to it.
MOVED = "moved_noises"


def swap_noise(
    model: nnx.Module, to: nnx.Module | None = None, matched: type[nnx.Module] | None = None
) -> nnx.Module:
    """See `dropbn.diagnose.surgery.swap_noise`. A new noise takes over the stream and the flag of the old."""
    if matched is not None and issubclass(matched, noises.AlphaDropout):
        raise DropbnError("AlphaDropout has no s2 to match: give swap_noise a noise, to=AlphaDropout(0.1).")
    copy = _copy(model)
    for name, noise in _noises(copy).items():
        if _is_within(noise):
            warnings.warn(f"'{name}' has noise within it and is not swapped.", stacklevel=3)
            continue
        amount = registry.amount_of(noise)
        if amount is None:
            warnings.warn(f"'{name}' has neither rate nor beta and is not swapped.", stacklevel=3)
        elif not (laws.is_number(amount) and amount == 0):
            new: Any = nnx.clone(to) if matched is None else _match(name, noise, matched)
            new.rngs, new.deterministic = noise.rngs, noise.deterministic
            _become(noise, new)
    drawn = by_hand.find(copy)
    drawn.warn()
    for name, noise in drawn.noises.items():
        amount = registry.amount_of(noise)
        if amount is None and matched is not None:
            warnings.warn(f"'{name}' has neither rate nor beta and is not swapped.", stacklevel=3)
        elif not (laws.is_number(amount) and amount == 0):
            by_hand.put_in_place(noise, nnx.clone(to) if matched is None else _match(name, noise, matched))
    return copy


def without_noise(model: nnx.Module) -> nnx.Module:
    """See `dropbn.diagnose.surgery.without_noise`."""
    copy = _copy(model)
    for name, noise in _noises(copy).items():
        field = _field(noise)
        if field is None:
            raise DropbnError(f"'{name}' has no amount that could be 0: call the model in test mode instead.")
        setattr(noise, field, 0.0)
    drawn = by_hand.find(copy)
    drawn.warn()
    for noise in drawn.noises.values():
        by_hand.leave_out(noise)
    return copy


def with_rates(model: nnx.Module, rates: Mapping[str, Any]) -> nnx.Module:
    """See `dropbn.diagnose.surgery.with_rates`."""
    copy = _copy(model)
    found = _noises(copy) | by_hand.find(copy).noises
    known = {name: noise for name, noise in found.items() if _field(noise)}
    for pattern, rate in rates.items():
        names = fnmatch.filter(known, pattern)
        if not names:
            raise unknown("noise", pattern, known)
        for name in names:
            _set_amount(known[name], rate)
    return copy


def move(model: nnx.Module, moves: Mapping[str, str]) -> nnx.Module:
    """See `dropbn.diagnose.surgery.move`. A noise is moved into its target, and its old place has rate 0."""
    copy = _copy(model)
    layers = {_name(path): layer for path, layer in nnx.iter_modules(copy)}
    registered, drawn = _noises(copy), by_hand.find(copy).noises
    known = registered | drawn
    for source, target in moves.items():
        if source not in known:
            raise unknown("noise", source, known)
        if target not in layers:
            raise unknown("layer", target, layers)
        noise, place = known[source], layers[target]
        if isinstance(place, nnx.bridge.ToNNX):
            raise DropbnError(f"'{target}' is a Linen module: no noise is moved into it.")
        if source in registered and (_is_within(noise) or _field(noise) is None):
            raise DropbnError(f"'{source}' does more than add noise, so it cannot be moved.")
        if not by_hand.takes_input_alone(noise):
            raise DropbnError(
                f"'{source}' has no random stream of its own, or is called with more than its input, so it "
                "cannot be moved: construct it with rngs=."
            )
        moved = nnx.clone(noise)
        if source in drawn:
            by_hand.leave_out(noise)
        else:
            setattr(noise, str(_field(noise)), 0.0)
        if MOVED in vars(place):
            getattr(place, MOVED).append(moved)
            continue
        setattr(place, MOVED, nnx.List([moved]))
        object.__setattr__(place, "__class__", _followed_by_noise(type(place)))
    return copy


@functools.lru_cache(maxsize=256)
def _followed_by_noise(kind: type) -> type:
    """A subclass whose output gets the noises that were moved to it."""

    def __call__(self, *args, **kwargs):
        y = super(own, self).__call__(*args, **kwargs)
        if not isinstance(y, jax.Array):
            raise DropbnError(
                f"A noise was moved to a {kind.__name__} whose output is no array but a {type(y).__name__}: "
                "choose a layer that returns one array."
            )
        for noise in getattr(self, MOVED):
            y = noise(y)
        return y

    own: Any = type(kind)(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})
    return own


def _copy(model):
    """The copy that is edited; it names the modules that are not."""
    within = [_name(path) for path, layer in nnx.iter_modules(model) if isinstance(layer, nnx.bridge.ToNNX)]
    if within:
        message = f"Linen modules within are not edited: {'; '.join(within)}. Edit each before it is bridged."
        warnings.warn(message, stacklevel=4)
    return nnx.clone(model)


def _noises(model):
    """The registered noises of a model, by name."""
    found = ((path, layer) for path, layer in nnx.iter_modules(model) if _is_registered(layer))
    return {_name(path): layer for path, layer in found}


def _name(path):
    return name_of(tuple(map(str, path)))


def _is_registered(noise):
    return registry.of(noise, registry.NOISES) is not None


def _is_within(noise):
    switch = registry.of(noise, registry.NOISES)
    return switch is not None and switch.within


def _field(noise):
    """The attribute that holds the amount of a noise; None if there is none."""
    return next((field for field in registry.AMOUNTS if field in vars(noise)), None)


def _set_amount(noise, amount):
    if isinstance(amount, jax.Array):
        if type(noise) is nnx.Dropout:
            # It compares its rate with 0, which fails for a traced rate. Ours draws its masks.
            new = noises.Dropout(
                0.0, broadcast_dims=noise.broadcast_dims, rng_collection=noise.rng_collection
            )
            new.rngs, new.deterministic = noise.rngs, noise.deterministic
            _become(noise, new)
        amount = nnx.data(amount)
    setattr(noise, str(_field(noise)), amount)


def _become(old, new):
    """Makes one module the other wherever it stands; it may stand in several places."""
    state = dict(vars(new))
    object.__setattr__(old, "__class__", type(new))
    vars(old).clear()
    vars(old).update(state)


def _match(name, noise, kind):
    """A noise of class `kind` with the s2 of another."""
    law = registry.law_of(noise) if _is_registered(noise) else laws.Dropout(registry.amount_of(noise))
    s2 = law and law.s2
    if s2 is None:
        raise DropbnError(
            f"'{name}' is {type(noise).__name__}, which has no s2 to match: give swap_noise a noise, "
            "to=Uout(0.1, rngs=...)."
        )
    of_beta = issubclass(kind, noises.Uout)
    alike = {
        name: getattr(noise, name) for name in ("broadcast_dims", "rng_collection") if hasattr(noise, name)
    }
    try:
        return kind((laws.Uout if of_beta else laws.Dropout).of_s2(s2).amount, **alike)
    except DropbnError as error:
        reached = f"The noise at '{name}' has s2 = {s2:.3g}, which {kind.__name__} does not reach."
        raise DropbnError(f"{reached} {error}") from error
