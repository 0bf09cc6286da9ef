"""Checks the noise and the batch normalizations of a Linen or NNX model, even before it is trained.

    python -m dropbn lint package.module:name --input=2,32,32,3

`name` is a Linen or NNX module or a function that returns one, imported from the current directory. Nothing
is computed. The exit status is 0 without errors, 1 with errors, and 2 if the model cannot be analysed, or if
something that is not understood may shift a batch normalization or be one.
"""

import importlib
import re
import sys
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
import rich.text
from absl import flags

from dropbn import cli
from dropbn.diagnose import entry
from dropbn.diagnose.lint.report import check
from dropbn.errors import DropbnError, shown


def _load(target: str) -> Any:
    """The model that "package.module:name" names: a module of Linen or NNX, or what a function returns."""
    if not re.fullmatch(r"[\w.]+:[\w.]+", target):
        raise DropbnError(
            f"'{target}' does not name a model: give package.module:name, the name of a Linen or NNX "
            "module, or of a function that returns one."
        )
    module, _, names = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
        model = found if entry.is_module(found) else found()
    except DropbnError:
        raise
    except Exception as error:
        raise DropbnError(f"'{target}' gives no model: {type(error).__name__}: {error}") from error
    if not entry.is_module(model):
        raise DropbnError(f"'{target}' gives a {type(model).__name__}, not a Linen or NNX module.")
    return model


def main(target: str) -> int:
    """Lints a model from the command line; returns the exit status."""
    given = flags.FLAGS
    inputs = []
    for text in given.input:
        shape, _, dtype = text.partition(":")
        if not re.fullmatch(r"\d+(,\d+)*", shape):
            raise DropbnError(f"--input={shown(text)} is not a shape, such as 2,32,32,3 or 2,16:int32.")
        try:
            inputs.append(jax.ShapeDtypeStruct(tuple(map(int, shape.split(","))), dtype or "float32"))
        except (TypeError, ValueError) as error:
            raise DropbnError(f"--input={shown(text)}: {shown(error)}.") from error
    if not inputs:
        raise DropbnError("Give the shape of the model's input, as in --input=2,32,32,3.")
    report = check(_load(target), *inputs, num_steps=given.num_steps)
    if given.format == "json":
        print(report.to_json())
    else:
        rich.console.Console(highlight=False).print(report)
    if report.errors(given.fail_below):
        return 1
    return 2 if report.unseen(given.accept_unseen) else 0


def run() -> None:
    """The command `dropbn lint`."""
    flags.DEFINE_multi_string(
        "input", [], "Shape of an input, such as 2,32,32,3, or 2,16:int32 if it is not float32"
    )
    flags.DEFINE_enum("format", "table", ["table", "json"], "How findings are printed.")
    flags.DEFINE_float("fail_below", None, "Only errors whose ratio is below this count for the exit status.")
    flags.DEFINE_multi_string(
        "accept_unseen", [], "Accept draws and modules that are not understood and fit this pattern"
    )
    flags.DEFINE_integer(
        "num_steps", None, "Steps that the model will be trained, for DBN301.", lower_bound=1
    )
    sys.path.insert(0, "")
    cli.run(main, arguments=["package.module:name"], failure=2)
