"""What the command line names: models and batches of the user's files, and shapes of inputs."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

import jax

from dropbn.diagnose import entry
from dropbn.errors import DropbnError, shown


def load(target: str, what: str = "model") -> Any:
    """What "package.module:name" names; a function that is no module is called, and what it returns counts.

    Raises:
      DropbnError: there is nothing of this name, or it cannot be imported or called.
    """
    if not re.fullmatch(r"[\w.]+:[\w.]+", target):
        raise DropbnError(
            f"'{shown(target)}' does not name a {what}: give package.module:name, the name of a {what} or of "
            "a function that returns one."
        )
    module, _, names = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
        return found() if callable(found) and not entry.is_module(found) else found
    except DropbnError:
        raise
    except Exception as error:
        raise DropbnError(f"'{target}' gives no {what}: {type(error).__name__}: {error}") from error


def load_model(target: str) -> tuple[Any, dict | None]:
    """The model that `load` gives, and its variables if it comes with them.

    Raises:
      DropbnError: as of `load`; it is no module of Linen or NNX, and no pair of one with its variables.
    """
    found = load(target)
    is_both = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
    model, variables = found if is_both else (found, None)
    if not entry.is_module(model):
        raise DropbnError(f"'{target}' gives a {type(model).__name__}, not a Linen or NNX module.")
    return model, variables


def shape(text: str) -> jax.ShapeDtypeStruct:
    """The shape of an input, written as "2,32,32,3" or "2,16:int32".

    Raises:
      DropbnError: it is not written so.
    """
    sizes, _, dtype = text.partition(":")
    if not re.fullmatch(r"\d+(,\d+)*", sizes):
        raise DropbnError(f"--input={shown(text)} is not a shape, such as 2,32,32,3 or 2,16:int32.")
    try:
        return jax.ShapeDtypeStruct(tuple(map(int, sizes.split(","))), dtype or "float32")
    except (TypeError, ValueError) as error:
        raise DropbnError(f"--input={shown(text)}: {shown(error)}.") from error
