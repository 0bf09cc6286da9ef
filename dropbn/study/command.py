"""Trains every cell of a paper's table with several seeds, and sets it beside the paper's values.

    python -m dropbn study --config=configs/li2018.py:table3 --workdir=runs/table3 --seeds=5
    python -m dropbn study --config=configs/kim2023.py:table1 --workdir=runs/quick --quick --only=cifar100
    python -m dropbn study --config=configs/small.py:digits --workdir=runs/digits_study --dry_run

A member is a run of one cell with one seed; W/members/<cell>/seed<N> holds what train.py would write.
Finished members are skipped and unfinished ones go on from their checkpoints, so the same command resumes
after any interruption. If a member fails, its error is reported and written to error.txt beside the run, and
the others go on. At the end W/table.csv, table.json, table.md and W/figures hold the results, and `python -m
dropbn report --workdir=W` makes a page of them.

W/members.csv has the numbers of every member with commit, versions and device; W/correct.csv has the test
images that each member has right. Members in these files count as finished, so a copy of them is enough to
continue a study on another machine. `--collect` trains nothing and makes the table of the finished members.

Members that differ only in numbers (seed, noise amount, learning rate) share one compilation and train side
by side, one on each device. Several processes divide the members among them. `--parallel=data` trains one
member after another on all devices together. Any `--config.field=value` changes every member.
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

from dropbn import cli, processes
from dropbn.errors import DropbnError, headline
from dropbn.study import finished_runs, members, table, table_text, training, work_items
from dropbn.study.progress import StudyProgress
from dropbn.train import evaluation, parallel


def flipped(
    kept: Sequence[finished_runs.Cell], directory: str | os.PathLike, again: bool = True
) -> list[dict]:
    """Draws the images that are right in train mode and wrong in test mode (Li et al. 2018, Fig. 6).

    The images are those of the member that loses most training accuracy from train mode to test mode; it is
    evaluated as by eval.py.

    Args:
      kept: the cells with their finished members.
      directory: the study's workdir.
      again: whether an existing figure is drawn again.

    Returns:
      A list with the file and caption of the figure; [] if no member loses any accuracy.
    """
    losses = {
        (cell.arg, member.seed): member.summary["train_accuracy"] - member.summary["train_accuracy_test_mode"]
        for cell in kept
        for member in cell.members
        if member.summary.get("shift")
    }
    arg, seed = max(losses, key=losses.__getitem__, default=(None, 0))
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
        raise DropbnError(f"--only={given.only} matches no cell of {name}; --dry_run without it lists them.")
    table.refuse_another(given.workdir, given.config)
    with cli.parsing():
        chosen = members.create(file, args, given.seeds, given.workdir, overrides, given.quick)
    published = finished_runs.published(given.workdir)
    together = given.parallel == "data"
    todo, failed = ([], {}) if given.collect else work_items.create(chosen, together, published)
    console = rich.console.Console(highlight=False, markup=False)
    if given.dry_run:
        console.print(work_items.estimate(chosen, todo, failed))
        for error in dict.fromkeys(failed.values()):
            console.print(f"Cannot run: {error}", soft_wrap=True)
        return int(bool(failed))
    if parallel.is_first() and not given.collect:
        os.makedirs(given.workdir, exist_ok=True)
    parallel.share(given.workdir)
    if not given.collect:
        failed |= _train(chosen, todo, failed, console)
    parallel.wait_for_all("the members are trained")
    if parallel.is_first():
        failed = _errors(chosen) | _unreadable(cells, given.workdir) | failed
        kept = [_cell(cell, published) for cell in cells]
        found = _collect(module, name, kept, cells, claimed, failed, _command(given, overrides))
        table_text.show(found, console)  # Before it is written, because the disk may be full.
        for member, error in failed.items():
            console.print(f"Failed: {member}: {headline(error)}", soft_wrap=True)
        _write(module, found, kept, bool(todo))
        console.print(f"Written to {given.workdir}: table.md, table.csv, table.json, figures", soft_wrap=True)
    parallel.wait_for_all("the table is written")
    return 1 if failed else 0


def _train(chosen, todo, refused, console):
    """Trains this process's work items and shows them; returns {name: error} of members that failed."""
    finished = len(chosen) - len(todo) - len(refused)
    with StudyProgress(len(chosen), finished, sum(item.flops for item in todo), console) as progress:
        for member, error in refused.items():
            progress.ended(member, f"cannot run: {error}")
        return training.train(work_items.of_this_process(todo), progress)


def _errors(chosen):
    """{name: error} of unfinished members that have left an error, in this process or another."""
    unfinished = [member for member in chosen if not finished_runs.finished(member.directory)]
    errors = {member.name: finished_runs.error(member.directory) for member in unfinished}
    return {name: error for name, error in errors.items() if error}


def _unreadable(cells, workdir):
    """{name: error} of finished members, chosen or not, that cannot be read and do not count."""
    found = {
        f"{cell['arg']}, seed {directory.name.removeprefix('seed')}": finished_runs.unreadable(directory)
        for cell in cells
        for directory in sorted(members.directory_of(cell["arg"], workdir).glob("seed*"))
    }
    return {name: error for name, error in found.items() if error}


def _cell(cell, published):
    """A cell with its finished members."""
    directories = members.directory_of(cell["arg"], flags.FLAGS.workdir).glob("seed*")
    return finished_runs.cell(cell["arg"], cell["paper"], directories, published.get(cell["arg"], ()))


def _collect(module, name, kept, cells, claimed, failed, command):
    """The table of all cells, since those that --only leaves out may be finished from before."""
    given = flags.FLAGS
    wanted = set(range(given.seeds))
    missing = sum(len(wanted - {member.seed for member in cell.members}) for cell in kept)
    first = (module.__doc__ or module.__name__).strip().splitlines()[0].rstrip(".")
    return table.collect(
        f"{first} ({name})",
        _metric(module),
        kept,
        getattr(module, "COMPARABLE", True),
        {cell["arg"]: cell.get("adjusted") for cell in cells},
        claimed,
        config=given.config,
        command=command,
        seeds=sorted({member.seed for cell in kept for member in cell.members}),
        failed=[{"member": member, "error": error} for member, error in failed.items()],
        unfinished=max(missing - len(failed), 0),
    )


def _write(module, found, kept, is_new):
    """Writes the table and the figures."""
    given = flags.FLAGS
    plain = given.quick or given.collect
    more = list if plain else functools.partial(flipped, kept, given.workdir, is_new)
    try:
        table.write(given.workdir, found, kept, _metric(module), more)
    except DropbnError as error:
        raise DropbnError(
            f"{error} No member is lost: once this is mended, the same command writes the rest."
        ) from error


def _metric(module):
    return getattr(module, "METRIC", "accuracy")


def _is_chosen(cell, only):
    """Whether a cell has all words of --only, or matches it as a pattern."""
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
        "config", None, "FILE:TABLE, a study's config file and one of its tables.", required=True
    )
    flags.DEFINE_string("workdir", None, "The directory of the study.", required=True)
    flags.DEFINE_integer("seeds", 5, "How many members each cell has, with seeds from 0.", lower_bound=1)
    flags.DEFINE_string(
        "only", "", "Only cells that have these words, such as place=P4,cifar10, or match a pattern with *."
    )
    flags.DEFINE_bool("quick", False, "Shrink every member to two steps on digits.")
    flags.DEFINE_bool("dry_run", False, "Only list the cells and what training them will cost.")
    flags.DEFINE_bool("collect", False, "Only make the table of the members that are finished.")
    flags.DEFINE_enum(
        "parallel", "members", ["members", "data"], "What is divided among devices: members, or every batch."
    )
    processes.define()
    changes = [argument for argument in sys.argv if argument.startswith("--config.")]
    sys.argv = [argument for argument in sys.argv if argument not in changes]
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Without an accelerator, each core trains a member.
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        jax.config.update("jax_num_cpu_devices", len(cores))
    cli.run(
        lambda: main(changes),
        interrupted="the same command goes on, and trains no finished member again",
    )
