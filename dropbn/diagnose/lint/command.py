"""Checks the noise and the batch normalizations of a Linen or NNX model, even before it is trained.

    python -m dropbn lint package.module:name --input=2,32,32,3

`name` is a Linen or NNX module or a function that returns one, imported from the current directory. Nothing
is computed. The exit status is 0 without errors, 1 with errors, and 2 if the model cannot be analysed, or if
something that is not understood may shift a batch normalization or be one.
"""

import sys

import rich.console
from absl import flags

from dropbn import cli
from dropbn.diagnose import target
from dropbn.diagnose.lint.report import check
from dropbn.errors import DropbnError


def main(name: str) -> int:
    """Lints a model from the command line; returns the exit status."""
    given = flags.FLAGS
    inputs = [*map(target.shape, given.input)]
    if not inputs:
        raise DropbnError("Give the shape of the model's input, as in --input=2,32,32,3.")
    model, variables = target.load_model(name)
    report = check(model, *inputs, variables=variables, num_steps=given.num_steps)
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
