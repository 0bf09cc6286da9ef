"""The entrance of every tool: which API the model is written in that a user gives."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Union

import flax.linen as nn

from dropbn.diagnose import linen
from dropbn.diagnose.call import Call
from dropbn.diagnose.model import Model
from dropbn.errors import DropbnError

if TYPE_CHECKING:
    from flax import nnx

# What users give as a model: a module, or a Linen module for training and one for test.
ModelOrPair = Union[nn.Module, "nnx.Module", tuple[nn.Module, nn.Module]]
Returned = TypeVar("Returned")


def is_nnx(model: Any) -> bool:
    """Whether a model is an NNX module. It is not if nobody has imported flax.nnx, which takes its time."""
    return "flax.nnx" in sys.modules and isinstance(model, sys.modules["flax.nnx"].Module)


def model_of(
    model: ModelOrPair, variables: dict | None, call: Mapping[str, Any] | Call = Call()
) -> tuple[Model, Any]:
    """The model that a tool was given, and its variables: those given, or those that an NNX model holds.

    Args:
      model, variables: as the user gives them; the variables of an NNX model may be None.
      call: how it is called, or the keywords of a tool that say it.

    Raises:
      DropbnError: something else than a model; keywords that the model does not take.
    """
    if is_nnx(model):
        from dropbn.diagnose import nnx

        called, own = nnx.Model.of(model, call)
        return called, own if variables is None else variables
    pair = model if isinstance(model, tuple) else ()
    if any(map(is_nnx, pair)):
        raise DropbnError("An NNX model needs no pair: its train() and eval() say the mode. Give the model.")
    return linen.Model.of(model, call), variables


def holds_state(tool: Callable[..., Returned]) -> Callable[..., Returned]:
    """Lets a tool be called as `tool(model, batches)` where an NNX model holds its variables itself."""

    @functools.wraps(tool)
    def called(model: ModelOrPair, *args: Any, **kwargs: Any) -> Returned:
        if is_nnx(model) and "variables" not in kwargs and not _are_variables(args[:1]):
            args = (None, *args)
        return tool(model, *args, **kwargs)

    return called


def _are_variables(args):
    """Whether the first of some arguments are variables, or None in their place, and not batches or inputs."""
    given = next(iter(args), ())
    return given is None or (
        isinstance(given, Mapping) and given.keys() <= {"params", "batch_stats", "state"}
    )
