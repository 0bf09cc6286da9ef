"""Examines a model: what is wrong with its dropout and batch normalization, and what helps.

    python -m dropbn examine package.module:build --variables=model.msgpack \\
        --batches=package.module:train_batches --test=package.module:test_batches --html=examination.html
    python -m dropbn examine package.module:build --input=2,32,32,3

`build` is a Linen or NNX module, or a function that returns one, or one with its variables. The batches are
what `dropbn.diagnose.gap.explain` takes. The exit status is 0 after every examination, whatever it finds.
"""

import os
import sys

import rich.console
import rich.progress
from absl import flags

from dropbn import cli, writers
from dropbn.diagnose import entry, recalibrate, target, variables
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.call import Call
from dropbn.diagnose.examine import STEPS, examine
from dropbn.errors import DropbnError, shown
from dropbn.page import examination


def main(name: str) -> None:
    """Examines a model from the command line."""
    given = flags.FLAGS
    repairs = given.repair, given.save
    if any(repairs) and not all((*repairs, given.variables, given.batches)):
        raise DropbnError("--save writes what --repair makes of --variables by --batches: give all four.")
    if given.save and os.path.isdir(given.save):
        raise DropbnError(f"--save={shown(given.save)} is a directory that is there: give a new path.")
    if not (given.batches or given.input):
        raise DropbnError("Give --batches, or the shape of the model's input, as in --input=2,32,32,3.")
    model, own = target.load_model(name)
    train = Batches(target.load(given.batches, "iterable of batches")) if given.batches else None
    test = target.load(given.test, "iterable of batches") if given.test else None
    shapes = tuple(map(target.shape, given.input))
    example = shapes[0] if len(shapes) == 1 else shapes or None
    source = None
    if given.variables:
        own, source = variables.read(given.variables, _shapes(model, train, example), within=given.within)
        for hint in source.hints:
            print(hint)
    console = rich.console.Console(highlight=False)
    with rich.progress.Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(STEPS))

        def watch(step: str) -> None:
            progress.update(bar, description=step, completed=STEPS.index(step))

        found = examine(model, own, train, test, example=example, task=given.task, watch=watch)
    console.print(found)
    if given.html:
        writers.replace(given.html, examination.page(found))
        console.print(f"Written to {given.html}")
    if given.save and source and own:
        repaired = recalibrate.recalibrate(model, own, train, recipe=given.repair)
        variables.write(given.save, {**own, "batch_stats": repaired.batch_stats}, source)
        console.print(f"Repaired by {given.repair}: written to {given.save}")


def _shapes(model, train, example):
    """The shapes of the variables that the model has for its inputs."""
    called, _ = entry.model_to_trace(model, None, Call())
    x = example if train is None else train.inputs(train.first)
    return called.shapes(*called.arguments(x))


def run() -> None:
    """The command `dropbn examine`."""
    flags.DEFINE_string("variables", None, "An orbax checkpoint, or a msgpack, .safetensors or .npz file.")
    flags.DEFINE_string("within", "", "The part of that file to look in, if several fit, such as ema.")
    flags.DEFINE_string("batches", None, "Training batches: package.module:name.")
    flags.DEFINE_string("test", None, "Test batches with labels, likewise.")
    flags.DEFINE_multi_string("input", [], "Without batches, the shape of an input, as of lint.")
    flags.DEFINE_enum("task", None, ["classify", "binary", "multilabel", "regress"], "What the outputs are.")
    flags.DEFINE_string("html", None, "The file of the page to write.")
    flags.DEFINE_enum("repair", None, [*recalibrate.RECIPE_NAMES], "The recipe that takes statistics again.")
    flags.DEFINE_string("save", None, "Where the repaired variables go, in the format in which they came.")
    sys.path.insert(0, "")
    cli.run(main, arguments=["package.module:name"])
