"""Finds the argument of a model that says training by what it does, where no known name says it."""

import inspect
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dropbn.diagnose import layer_search
from dropbn.diagnose.cache import cached
from dropbn.diagnose.flags import is_bool
from dropbn.diagnose.tracing import abstract
from dropbn.errors import DropbnError

if TYPE_CHECKING:
    from dropbn.diagnose.model import Model


@cached
def find(model: "Model", treedef: Any, leaves: tuple) -> dict[str, tuple[bool, bool]]:
    """The argument that says training, if there is one, and its values (in training, in test mode).

    It is a bool whose two values differ in which noises are on, or in which statistics batch normalizations
    use, while the variables of the model stay the same. A warning says which it is.

    Args:
      model: a `model.Model` whose modes nothing that is known tells apart.
      treedef, leaves: (args, kwargs) of a call without flags, as `tracing.abstract` gives them.

    Raises:
      DropbnError: several arguments do so.
    """
    args, kwargs = treedef.unflatten(leaves)
    names = _candidates(model.parameters, args, kwargs)
    # A thread of its own has no interceptors, and none of the traces in which the model is called.
    with ThreadPoolExecutor(1) as thread, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not names or thread.submit(_training, model, args, kwargs).result() is not None:
            return {}
        values = {name: thread.submit(_training, model, args, kwargs, name).result() for name in names}
    found = {name: (value, not value) for name, value in values.items() if value is not None}
    if len(found) > 1:  # One whose default is None follows another.
        found = {name: found[name] for name in found if model.parameters[name].default is not None} or found
    if len(found) > 1:
        told = "; or ".join(
            f"train_kwargs={{{name!r}: {value}}}, test_kwargs={{{name!r}: {other}}}"
            for name, (value, other) in found.items()
        )
        raise DropbnError(
            f"Which argument of {model.name}({', '.join(model.parameters)}) says training? Of unknown names, "
            f"{' and '.join(found)} change noise or batch normalization: give {told}."
        )
    for name, (value, _) in found.items():
        message = (
            f"{name}={value} is taken to say training: no argument of {model.name} has a known name, and "
            "this one switches its noise or batch normalization. train_kwargs= and test_kwargs= would say it."
        )
        warnings.warn(message, stacklevel=2)
    return found


def _candidates(parameters: Mapping[str, inspect.Parameter], args: tuple, kwargs: Mapping) -> list[str]:
    """The arguments left out that may be bools."""
    left_out = [name for name in [*parameters][len(args) :] if name not in kwargs]
    required = inspect.Parameter.empty
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name in left_out
        if parameters[name].kind in kinds
        and (is_bool(parameters[name]) or parameters[name].default is required)
    ]


def _training(model, args, kwargs, name=""):
    """The value of an argument with which the model trains, of no argument True; None if none is known."""
    first, second = ({name: value} if name else {} for value in (True, False))
    told, reverse = model.telling(first, second), model.telling(second, first)
    try:
        variables = told.shapes(args, kwargs)
        if abstract(variables) != abstract(reverse.shapes(args, kwargs)):
            return None
        found = layer_search.find(told, *abstract((variables, args, kwargs)))
    except Exception:  # It does not run like this.
        return None
    modes = [(use.train, use.test) for use in found.norms.values() if None not in (use.train, use.test)]
    modes += [(bool(use.train), bool(use.test)) for use in found.noises.values()]
    modes += [(True, False)] * bool(found.training_draws)
    modes += [(False, True)] * bool(found.test_draws.keys() - found.draws)
    trains = {first for first, second in modes if first != second}
    return trains.pop() if len(trains) == 1 else None
