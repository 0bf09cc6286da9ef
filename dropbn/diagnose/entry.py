"""The entrance of every tool: which API the model is written in that a user gives."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, Union

import flax.linen as nn
import jax
import numpy as np

from dropbn.diagnose import linen
from dropbn.diagnose.call import Call
from dropbn.diagnose.model import Model
from dropbn.diagnose.tracing import flat_stats
from dropbn.errors import DropbnError

if TYPE_CHECKING:
    from flax import nnx

# What users give as a model: a module, or a Linen module for training and one for test.
ModelOrPair = Union[nn.Module, "nnx.Module", tuple[nn.Module, nn.Module]]
AnyModule = Union[nn.Module, "nnx.Module"]
Returned = TypeVar("Returned")


def is_nnx(model: Any) -> TypeGuard["nnx.Module"]:
    """Whether a model is an NNX module. It is not if nobody has imported flax.nnx, which takes its time."""
    return "flax.nnx" in sys.modules and isinstance(model, sys.modules["flax.nnx"].Module)


def surgery_of(model: Any) -> Any:
    """The edits of an NNX model, `dropbn.diagnose.nnx.surgery`; None of another."""
    if not is_nnx(model):
        return None
    from dropbn.diagnose.nnx import surgery

    return surgery


def is_module(model: Any) -> bool:
    """Whether it is a module of Linen or NNX."""
    return isinstance(model, nn.Module) or is_nnx(model)


def model_of(
    model: ModelOrPair, variables: dict | None, call: Mapping[str, Any] | Call = Call()
) -> tuple[Model, Any]:
    """The model that a tool was given, and its variables: those given, or those that an NNX model holds.

    Args:
      model, variables: as the user gives them; the variables of an NNX model may be None.
      call: how it is called, or the keywords of a tool that say it.

    Raises:
      DropbnError: something else than a model; keywords that the model does not take; an NNX model that holds
        shapes instead of arrays, as of `nnx.eval_shape`.
    """
    if is_nnx(model):
        called, own = _nnx_model(model, call)
        if variables is None and not _are_arrays(own):
            raise DropbnError(f"The arrays of this {called.name} are only shapes: give a model with values.")
        return called, own if variables is None else variables
    if _is_nnx_pair(model):
        raise DropbnError("An NNX model needs no pair: its train() and eval() say the mode. Give the model.")
    return linen.Model.of(model, call), variables


def model_to_trace(
    model: ModelOrPair, variables: dict | None, call: Mapping[str, Any] | Call = Call()
) -> tuple[Model, Any]:
    """As `model_of`, for tools that work before training too: its variables are None if they are not trained.

    Those of an NNX model are taken for trained if it has arrays and its statistics have moved.
    """
    if is_nnx(model) and variables is None:
        called, own = _nnx_model(model, call)
        return called, own if _are_arrays(own) and _have_moved(own) else None
    return model_of(model, variables, call)


def holds_state(tool: Callable[..., Returned]) -> Callable[..., Returned]:
    """Lets a tool be called as `tool(model, batches)` where an NNX model holds its variables itself."""

    @functools.wraps(tool)
    def called(model: ModelOrPair, *args: Any, **kwargs: Any) -> Returned:
        has_state = is_nnx(model) or _is_nnx_pair(model)
        if has_state and "variables" not in kwargs and not _are_variables(args[:1]):
            args = (None, *args)
        return tool(model, *args, **kwargs)

    return called


def _is_nnx_pair(model):
    return isinstance(model, tuple) and any(map(is_nnx, model))


def _are_variables(args):
    """Whether the first of some arguments are variables, or None in their place."""
    given, collections = next(iter(args), ()), {"params", "batch_stats", "state"}
    return given is None or (isinstance(given, Mapping) and given.keys() <= collections)


def _nnx_model(module, call):
    from dropbn.diagnose import nnx

    return nnx.Model.of(module, call)


def _are_arrays(variables):
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))


def _have_moved(variables):
    """Whether any mean or variance is not that of initialization, 0 or 1."""
    initial = {"mean": 0, "var": 1}
    stats = ((path[-1], leaf) for path, leaf in flat_stats(variables).items())
    return any(np.any(leaf != initial[name]) for name, leaf in stats if name in initial)
