"""Finds the layers of a model, and what the model itself does with them, by tracing it in both modes."""

import collections
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.extend.core
from flax.traverse_util import flatten_dict

from dropbn.diagnose import interception, layer_marks, random_draws, registry, tracing
from dropbn.diagnose.cache import cached
from dropbn.diagnose.interception import TEST, TRAIN
from dropbn.diagnose.layer_marks import Marked
from dropbn.diagnose.layers import Layers, Traced, Use
from dropbn.diagnose.noises import Noise, noise_of
from dropbn.diagnose.norm_search import norm_of
from dropbn.diagnose.norms import Norm
from dropbn.diagnose.seam import Layer, first, leaves_of, passed_on
from dropbn.diagnose.tracing import Path, abstract, split


@cached
def find(model: Any, treedef: Any, leaves: tuple) -> Layers:
    """The layers of a `model.Model` for (variables, args, kwargs) as `tracing.abstract` gives them."""
    arrays, rebuild = split(jax.tree.unflatten(treedef, leaves))
    streams = list(dict.fromkeys(["dropout", *(model.call.rngs or ())]))
    train, test = (_trace(model, arrays, rebuild, streams, testing) for testing in (False, True))
    passes = dict(test.identities)
    # Otherwise test mode may do something in the place of what it leaves out.
    if test.called <= train.called:
        passes |= {path: number for path, number in train.alike.items() if path not in test.called}
    by_hand = _around([where for where in train.draws if where not in test.draws], passes)
    passes = {path: passes[path] for path in by_hand.values()}
    within = _around(train.draws, train.noisy)
    noises = _uses(train.noises, test.noises) | {path: Use(True, False) for path in by_hand.values()}
    norms, marked = _uses(train.norms, test.norms), test.marked | train.marked
    found = train.draws, test.draws, by_hand, passes, within, train.states, marked, train.epsilon
    both = (train.returned, test.returned), (train.traced, test.traced)
    elsewhere = train.elsewhere | test.elsewhere
    state = (path for path in sorted(train.moved & test.read) if path[0] not in ("params", "batch_stats"))
    moved = {path[1:-1]: path[0] for path in state}
    return Layers(noises, norms, elsewhere, moved, tuple(streams), *found, *both)


class _Trace(NamedTuple):
    """What one mode of a model does.

    Attributes:
      noises, norms: path -> (whether it is on, the smallest number of values per channel, what it is).
      called: the modules that it calls.
      identities: the modules that return their first arguments; how many, as of `Layers.passes`.
      alike: the modules without variables that return other arrays of the same shapes.
      noisy: the registered layers that do more than add noise.
      moved, read: the variables that it replaces, and those on which its output depends.
      elsewhere, draws, states, marked, epsilon, returned, traced: see `Layers`.
    """

    noises: dict[Path, tuple[bool, float, Noise]]
    norms: dict[Path, tuple[bool, float, Norm]]
    called: set[Path]
    identities: dict[Path, int]
    alike: dict[Path, int]
    noisy: set[Path]
    moved: set[Path]
    read: set[Path]
    elsewhere: dict[Path, str]
    draws: dict[str, list[str]]
    states: dict[str, list[str]]
    marked: dict[str, Marked]
    epsilon: float
    returned: Any
    traced: Traced


def _trace(model, arrays, rebuild, streams, testing):
    noises: dict[Path, tuple[bool, float, Noise]] = {}
    norms: dict[Path, tuple[bool, float, Norm]] = {}
    elsewhere: dict[Path, str] = {}
    moved: set[Path] = set()
    marker = _Marker()

    def note(layer, norm, is_on, values):
        if norm and not norm.is_measured:
            elsewhere[layer.path] = norm.collection
            return
        found: dict = norms if norm else noises
        on, fewest, *_ = found.get(layer.path, (False, values))
        found[layer.path] = on or is_on, min(fewest, values), norm or noise_of(layer.module)

    def run(arrays, rngs):
        interceptor = interception.interceptor(TEST if testing else TRAIN, note=note)
        variables, args, kwargs = rebuild(arrays)
        given = variables, args, kwargs, testing, rngs, interceptor, True, True
        with model.intercepting(marker):
            try:
                returned, updated = model.run_under(*given, keeps_stats=testing)
            except tracing.MissingKey:
                raise
            except Exception:  # A BN uses the batch in test mode too, or nn.scan carries statistics.
                returned, updated = model.run_under(*given)
        moved.update(_moved(variables, updated))
        return returned

    def jaxpr_of(run, *given):
        return jax.make_jaxpr(run, return_shape=True)(*given)

    jaxpr, returned = tracing.shapes(model.name, run, arrays, streams, jaxpr_of)
    marked = layer_marks.read(jaxpr)
    # Called as in training, but without a draw: its rate is 0.
    idle = {path for path in noises if marked.get(tracing.name_of(path), _UNKNOWN).drawn == 0}
    noises = {
        path: (is_on and path not in idle, fewest, marker.drawn.get(path, called_as))
        for path, (is_on, fewest, called_as) in noises.items()
    }
    is_key = [number >= len(jaxpr.jaxpr.invars) - len(streams) for number in range(len(jaxpr.jaxpr.invars))]
    draws, states = _apart(random_draws.reached(jaxpr, is_key))
    variables, *_ = rebuild([*range(len(arrays))])
    inputs = layer_marks.inputs_of_output(jaxpr)
    read = {path for path, number in _flat(variables).items() if number in inputs}
    traced = Traced(jaxpr, tuple(sorted(streams)))  # A tree's keys are in the order of their names.
    others = moved, read, elsewhere, draws, states, marked, layer_marks.coarsest(jaxpr), returned, traced
    return _Trace(noises, norms, marker.called, marker.identities, marker.alike, marker.noisy, *others)


_UNKNOWN = Marked(drawn=float("inf"))


def _flat(variables):
    return flatten_dict(flax.core.unfreeze(dict(variables)))


def _moved(variables, updated):
    """The paths of the variables that a run has replaced."""
    given = _flat(variables)
    return {path for path, leaf in _flat(updated).items() if path in given and given[path] is not leaf}


def _apart(reached):
    """The draws and the running states that were followed, each with what it reaches."""
    states = [where for where in reached if where.startswith(random_draws.STATE)]
    draws = {where: norms for where, norms in reached.items() if where not in states}
    return draws, {where.removeprefix(random_draws.STATE): reached[where] for where in states}


def _around(draws, modules):
    """Where draws stand -> the innermost of the modules around."""
    found: dict[str, Path] = {}
    for where in draws:
        inside = where.partition(" ")[0].split("/") if " " in where else []
        around = (tuple(inside[:number]) for number in range(len(inside), 0, -1))
        if (path := next(filter(modules.__contains__, around), None)) is not None:
            found[where] = path
    return found


class _Marker:
    """For `model.Model.intercepting`: marks the outputs of noises, BNs, and others with running state.

    Attributes:
      called, identities, alike, noisy: see `_Trace`.
      drawn: what is known of the noises that run; surgery may run another than the one that is called.
      numbers: how many marks each layer has.
    """

    def __init__(self) -> None:
        self.called: set[Path] = set()
        self.identities: dict[Path, int] = {}
        self.alike: dict[Path, int] = {}
        self.noisy: set[Path] = set()
        self.drawn: dict[Path, Noise] = {}
        self.numbers: collections.Counter[Path] = collections.Counter()

    def __call__(self, run: Callable, args: tuple, kwargs: dict, layer: Layer) -> Any:
        before = self.numbers[layer.path]
        norm, noise = norm_of(layer, args, kwargs), registry.of(layer.module, registry.NOISES)
        with tracing.within(layer.path):
            y, x = run(*args, **kwargs), first(args, kwargs)
        self.called.add(layer.path)
        if layer.is_call:
            self._compare(y, args, kwargs, layer)
        if noise and noise.within:
            self.noisy.add(layer.path)
            noise = None  # Its draws are followed, as its output is not its input with noise.
        # Marked already: a subclass has called its parent, surgery another noise.
        is_marked = self.numbers[layer.path] > before
        if not layer.is_call or y is x or not isinstance(y, jax.Array) or is_marked:
            return y
        if norm:
            kind, leaves = "norm", [layer.get(norm.mean.name)] if norm.is_measured else []
        elif noise:
            kind, leaves = "noise", []
            self.drawn[layer.path] = noise_of(layer.module)
        else:
            kind, leaves = "state", leaves_of(layer) if isinstance(x, jax.Array) else []
        if kind == "state" and not leaves:
            return y
        self.numbers[layer.path] += 1
        return tracing.mark_p.bind(y, x, *leaves, kind=kind, name=tracing.name_of(layer.path), times=1)

    def _compare(self, y, args, kwargs, layer):
        """Notes whether a module returns its first arguments, or arrays of their shapes."""
        number = len(y) if type(y) is tuple else 0
        given = passed_on(args, kwargs, number)
        if y is given or (number and len(given) == number and all(map(operator.is_, y, given))):
            self.identities[layer.path] = number
        elif not layer.leaves() and abstract(y) == abstract(given):
            self.alike[layer.path] = number


def _uses(train, test):
    unreached, uses = (None, float("inf"), None), {}
    for path in train | test:
        (in_train, values, layer), (in_test, others, same) = (
            found.get(path, unreached) for found in (train, test)
        )
        if isinstance(same, Norm) and same.switch is None and not layer:
            continue  # It is frozen in test mode alone, and nobody knows what switches it.
        uses[path] = Use(in_train, in_test, min(values, others), layer or same)
    return uses
