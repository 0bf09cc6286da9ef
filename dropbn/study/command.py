"""Trains every cell of a paper's table with several seeds, and sets it beside the paper's values.

    python -m dropbn study --config=configs/li2018.py:table3 --workdir=runs/table3 --seeds=5
    python -m dropbn study --config=configs/kim2023.py:table1 --workdir=runs/quick --quick --only=cifar100
    python -m dropbn study --config=configs/small.py:digits --workdir=runs/digits_study --dry_run

A member is a cell and a seed; its run is kept in W/members/<cell>/seed<N> as train.py would keep it. Finished
members are skipped and half-done ones go on from their checkpoint, so the same command goes on after any
interruption. A member that fails is reported, its error is kept in error.txt beside the run, and the others
go on. At the end W/table.csv, table.json, table.md and W/figures hold what was found, and
`python -m dropbn report --workdir=W` makes a page of it.

W/members.csv has the numbers of every member with commit, versions and device, W/correct.csv the test images
that each has right. Members that are in these files count as finished, so that a copy of them is enough to go
on with a study on another machine. `--collect` trains nothing and makes the table of what is finished.

Members that differ only in numbers (seed, noise amount, learning rate) share one compilation, and run side by
side, one on each device; of several processes each trains its share. `--parallel=data` trains them one after
another on all devices together. Further `--config.field=value` change every member.
"""

import fnmatch
import functools
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
import rich.console
from absl import flags

from dropbn import cli
from dropbn.errors import DropbnError, headline
from dropbn.study import finished_runs, members, table, training, work_items
from dropbn.study.progress import StudyProgress
from dropbn.train import evaluation, parallel


def flipped(kept: Sequence[finished_runs.Cell], directory, again: bool = True) -> list[dict]:
    """Draws the images that are right in train mode and wrong in test mode (Li et al. 2018, Fig. 6).

    They are those of the member that loses most training accuracy from train mode to test mode, evaluated as
    eval.py does.

    Args:
      kept: the cells with their finished members.
      directory: the study's workdir.
      again: whether a figure that is there already is drawn again.

    Returns:
      File and caption of the figure, in a list; [] where no member loses any.
    """
    losses = {
        (cell.arg, member.seed): member.summary["train_accuracy"] - member.summary["train_accuracy_test_mode"]
        for cell in kept
        for member in cell.members
        if member.summary.get("shift")
    }
    arg, seed = max(losses, key=losses.get, default=(None, 0))
    if arg is None or losses[arg, seed] <= 0:
        return []
    file = pathlib.Path(directory, "figures", "flips.png")
    if again or not file.exists():
        found = evaluation.evaluate(members.directory_of(arg, directory) / f"seed{seed}")
        if not found.gap.flips.rows:
            return []
        found.gap.plot(file)
    caption = f"Training images that are right in train mode and wrong in test mode, {arg}, seed {seed}."
    return [{"file": file.name, "caption": f"{caption} Compare Li et al. (2018), Fig. 6."}]


def main(overrides: Sequence[str]) -> int:
    """Runs a study from the command line; returns the exit status, 1 if a member failed."""
    given = flags.FLAGS
    file, _, name = given.config.partition(":")
    module = members.load(file)
    if not name:
        raise DropbnError(f"Say which table, as in --config={file}:{next(iter(module.TABLES), 'TABLE')}.")
    cells = module.sweep(name)
    claimed = module.claims(name) if hasattr(module, "claims") else []
    args = [cell["arg"] for cell in cells if _is_chosen(cell["arg"], given.only)]
    if not args:
        raise DropbnError(f"--only={given.only} leaves no cell of {name}.")
    table.refuse_another(given.workdir, given.config)
    with cli.parsing():
        chosen = members.create(file, args, given.seeds, given.workdir, overrides, given.quick)
    published = finished_runs.published(given.workdir)
    todo, failed = (
        ([], {}) if given.collect else work_items.create(chosen, given.parallel == "data", published)
    )
    console = rich.console.Console(highlight=False, markup=False)
    if given.dry_run:
        console.print(work_items.estimate(chosen, todo, failed))
        for error in dict.fromkeys(failed.values()):
            console.print(f"Cannot run: {error}", soft_wrap=True)
        return 0
    if not given.collect:
        finished = len(chosen) - len(todo) - len(failed)
        cost = sum(item.flops for item in todo)
        with StudyProgress(len(chosen), finished, cost, console) as progress:
            for member, error in failed.items():
                progress.ended(member, f"cannot run: {error}")
            failed |= training.train(work_items.of_this_process(todo), progress)
    parallel.wait_for_all("the members are trained")
    if parallel.is_first():
        failed = _errors(chosen) | failed
        command = _command(given, overrides)
        found = _collect(module, name, cells, claimed, published, failed, bool(todo), command)
        table.show(found, console)
        console.print(f"Written to {given.workdir}: table.md, table.csv, table.json, figures", soft_wrap=True)
    parallel.wait_for_all("the table is written")
    for member, error in failed.items():
        console.print(f"Failed: {member}: {headline(error)}", soft_wrap=True)
    return 1 if failed else 0


def _errors(chosen):
    """{name: error} of members that are not finished and have left one, also in another process."""
    unfinished = [member for member in chosen if not finished_runs.finished(member.directory)]
    errors = {member.name: finished_runs.error(member.directory) for member in unfinished}
    return {name: error for name, error in errors.items() if error}


def _collect(module, name, cells, claimed, published, failed, is_new, command):
    """The table, of all its cells: what --only leaves out now may be there from before."""
    given = flags.FLAGS
    kept = [
        finished_runs.cell(
            cell["arg"],
            cell["paper"],
            members.directory_of(cell["arg"], given.workdir).glob("seed*"),
            published.get(cell["arg"], ()),
        )
        for cell in cells
    ]
    wanted = set(range(given.seeds))
    missing = sum(len(wanted - {member.seed for member in cell.members}) for cell in kept)
    first = (module.__doc__ or module.__name__).strip().splitlines()[0].rstrip(".")
    return table.collect(
        given.workdir,
        f"{first} ({name})",
        getattr(module, "METRIC", "accuracy"),
        kept,
        getattr(module, "COMPARABLE", True),
        {cell["arg"]: cell.get("adjusted") for cell in cells},
        claimed,
        list if given.quick or given.collect else functools.partial(flipped, kept, given.workdir, is_new),
        config=given.config,
        command=command,
        seeds=sorted({member.seed for cell in kept for member in cell.members}),
        failed=[{"member": member, "error": error} for member, error in failed.items()],
        unfinished=max(missing - len(failed), 0),
    )


def _is_chosen(cell, only):
    """Whether a cell has all the words of --only, or fits it as a pattern."""
    if set(only) & set("*?["):
        return fnmatch.fnmatch(cell, only)
    return set(only.split(",")) <= {*cell.split(","), ""}


def _command(given, overrides):
    words = [f"--config={given.config}", "--workdir=W", f"--seeds={given.seeds}", *overrides]
    words += ["--quick"] * given.quick + [f"--only={given.only}"] * bool(given.only)
    words += ["--parallel=data"] * (given.parallel == "data")
    return shlex.join(["python", "-m", "dropbn", "study", *words])


def run() -> None:
    """The command `dropbn study`."""
    flags.DEFINE_string(
        "config", None, "A study's config file and one of its tables, FILE:TABLE.", required=True
    )
    flags.DEFINE_string("workdir", None, "Where the study is kept.", required=True)
    flags.DEFINE_integer("seeds", 5, "Members of each cell, with seeds from 0.", lower_bound=1)
    flags.DEFINE_string(
        "only", "", "Only cells with these words, such as place=P4,cifar10, or a pattern with *."
    )
    flags.DEFINE_bool("quick", False, "Every member shrunk to two steps, on digits.")
    flags.DEFINE_bool("dry_run", False, "Only list the members and what they will cost.")
    flags.DEFINE_bool("collect", False, "Only make the table of the members that are finished.")
    flags.DEFINE_enum("parallel", "members", ["members", "data"], "What the devices share out.")
    cli.define_processes()
    changes = [argument for argument in sys.argv if argument.startswith("--config.")]
    sys.argv = [argument for argument in sys.argv if argument not in changes]
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Without an accelerator, a member for each core.
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        jax.config.update("jax_num_cpu_devices", len(cores))
    cli.run(
        functools.partial(main, changes),
        interrupted="the same command goes on, and trains no finished member again",
    )
