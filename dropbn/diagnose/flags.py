"""The arguments of a model that say whether it trains."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from dropbn.errors import DropbnError

# The values of these arguments of a model: (in training, in test mode).
FLAGS = {
    "train": (True, False),
    "training": (True, False),
    "is_train": (True, False),
    "is_training": (True, False),
    "deterministic": (False, True),
    "use_running_average": (False, True),
    "eval": (False, True),
    "is_eval": (False, True),
    "test": (False, True),
    "testing": (False, True),
    "inference": (False, True),
    "update_stats": (True, False),
    "mode": ("train", "eval"),
}
_MODES = ("train", "training", "eval", "evaluation", "test", "testing", "inference", "predict")


def flags_of(parameters: Mapping[str, inspect.Parameter]) -> dict[str, tuple[Any, Any]]:
    """The known flags among the parameters of a method: their values (in training, in test mode).

    `mode` is one of them if it has no default or if its default names a mode. A default that names a test
    mode is its value in test mode.
    """
    found = {name: FLAGS[name] for name in parameters if name in FLAGS}
    if "mode" in found:
        default = parameters["mode"].default
        if default in _MODES[2:]:
            found["mode"] = ("train", default)
        elif default is not inspect.Parameter.empty and default not in _MODES:
            del found["mode"]
    return found


def is_bool(parameter: inspect.Parameter) -> bool:
    """Whether the default or the annotation of a parameter says that it is a bool."""
    return isinstance(parameter.default, bool) or "bool" in str(parameter.annotation)


def left_out(
    own: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    args: tuple,
    kwargs: Mapping,
    testing: bool,
) -> dict[str, Any]:
    """The known flags that a call leaves out, with their values in training or in test mode.

    Args:
      own: the flags with which the model was constructed; None is one that it was not.
      parameters: of the method that is called.
      args, kwargs: the arguments of the call.
      testing: whether it is test mode.

    Raises:
      DropbnError: a flag that the call gives says the other mode.
    """
    found = {}
    for flag, values in flags_of(parameters).items():
        if flag in kwargs and kwargs[flag] == values[not testing]:
            said, needed = ("training", "test mode") if testing else ("test mode", "training")
            raise DropbnError(
                f"{flag}={kwargs[flag]!r} says {said}, and {needed} is run here: leave it out, or say by "
                "train_kwargs= and test_kwargs= which arguments mean what."
            )
        is_given = flag in kwargs or flag in [*parameters][: len(args)]
        if not is_given and own.get(flag) is None:
            found[flag] = values[testing]
    return found


def with_fields(model: nn.Module, testing: bool) -> nn.Module:
    """The model with the known flags among its fields set to training or to test."""
    inner = inspect.unwrap(model)
    fields: dict[str, Any] = {
        flag: FLAGS[flag][testing]
        for flag in FLAGS.keys() & inner.__dataclass_fields__.keys()
        if isinstance(getattr(inner, flag), bool)
    }
    if not fields:
        return model
    return model.wrapping(inner.clone(**fields)) if inner is not model else inner.clone(**fields)
