"""What a run and its evaluation print, and the page of a workdir.

    python -m dropbn.page.report --workdir=W [--output=FILE]

writes all that a study's or a run's workdir has found into one HTML file (`dropbn.page`).
"""

import json
import pathlib
import shlex

import rich.console
from absl import flags

from dropbn import page
from dropbn.diagnose.shift import Shift
from dropbn.errors import DropbnError
from dropbn.train import workdir as workdirs
from dropbn.train.evaluation import Evaluation


def print_run(records: list[dict], shift: Shift, workdir, console=None) -> None:
    """The closing summary of a training run: final numbers, most shifted layers, what to run next."""
    console = console or rich.console.Console(highlight=False, markup=False)
    final = records[-1]
    validated = "validation/accuracy" in final
    chosen_by, label = (
        ("validation/accuracy", "at best validation") if validated else ("test/accuracy", "best")
    )
    best = max(records, key=lambda record: record[chosen_by])["test/accuracy"]
    console.print(f"\nAfter {final['epoch']:.4g} epochs ({final['step']} steps):")
    console.print(
        f"  test accuracy                       {final['test/accuracy']:.2%}   ({label} {best:.2%})"
    )
    console.print(f"  training accuracy, in train mode    {final['train/accuracy']:.2%}")
    console.print(f"  the same, test mode, plain images   {final['train/accuracy_test_mode']:.2%}")
    if shift.rows:
        console.print("Most shifted BN layers, by real / moving variance (1 is no shift):")
    for row in shift.most_shifted(3):
        console.print(f"  {row['layer']:<35} {row['ratio']:.3f}")
    command = _evaluating(workdir)
    console.print(f"Results are in {workdir}. Look closer:\n  {command}\n", soft_wrap=True)


def print_evaluation(found: Evaluation, workdir, console=None) -> None:
    """The tables of an evaluation."""
    console = console or rich.console.Console(highlight=False, markup=False)
    console.print(f"\n{workdir}, checkpoint of step {found.checkpoint_step}\n")
    console.print(found.gap)
    console.print()
    for table in (found.recalibrated, found.sampled):
        if table:
            console.print(table)
    console.print(found.shift)
    if found.shift.rows:
        pooled, li2018 = (
            min(row["ratio"] for row in shift.rows) for shift in (found.shift, found.shift_li2018)
        )
        console.print(
            f"Lowest ratio {pooled:.3f} (pooled), {li2018:.3f} by the estimator of Li et al. 2018. Variances "
            "are biased (1/m), as Flax keeps them."
        )


def write_page(workdir, output=None) -> pathlib.Path:
    """Writes the page of a study's or a run's workdir, in one step.

    Args:
      workdir: a study's, with table.json, or a run's, with config.json.
      output: the file; by default report.html in the workdir.

    Returns:
      The file written.

    Raises:
      DropbnError: the workdir is neither, its study has no table yet, what it holds cannot be read, or the
        file cannot be written.
    """
    directory = pathlib.Path(workdir)
    table = _read_json(directory / "table.json")
    if table is not None:
        text = page.study(table, _images(directory, [figure["file"] for figure in table.get("figures", [])]))
    elif (directory / "config.json").exists():
        text = _run_page(directory)
    elif (directory / "members").exists():
        command = f"python -m dropbn.study.command --config=FILE:TABLE --workdir={shlex.quote(str(workdir))}"
        raise DropbnError(f"{workdir} holds a study without a table yet; run `{command}`, which writes it.")
    else:
        raise DropbnError(f"{workdir} holds neither a study (no table.json) nor a run (no config.json).")
    path = directory / "report.html" if output is None else pathlib.Path(output)
    try:
        workdirs.replace(path, text)
    except OSError as error:
        raise DropbnError(f"Cannot write to {path}: {error.strerror}.") from error
    return path


def _run_page(directory):
    config = workdirs.read_config(directory).to_dict()
    try:
        records = workdirs.read_metrics(directory)
    except ValueError as error:
        raise DropbnError(f"{directory / 'metrics.jsonl'} is not valid JSON: {error}.") from error
    figures = sorted(path.relative_to(directory).as_posix() for path in (directory / "eval").glob("*.png"))
    evaluation, images = _read_json(directory / "eval" / "report.json"), _images(directory, figures)
    return page.run(str(directory), config, records, evaluation, images, _evaluating(directory))


def _evaluating(workdir):
    return f"python eval.py --workdir={shlex.quote(str(workdir))}"


def _read_json(file):
    """The object in a file, None where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DropbnError(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
        raise DropbnError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DropbnError(f"{file} holds no object of names and values.")
    return found


def _images(directory, files):
    """file -> its bytes, None where it cannot be read."""
    images = {}
    for file in files:
        try:
            images[file] = (directory / file).read_bytes()
        except OSError:
            images[file] = None
    return images


def main() -> None:
    """Writes the page of --workdir from the command line."""
    path = write_page(flags.FLAGS.workdir, flags.FLAGS.output)
    print(f"Written to {path} ({path.stat().st_size / 1000:,.0f} kB)")


if __name__ == "__main__":
    from dropbn import cli

    flags.DEFINE_string("workdir", None, "A study's workdir, or a run's.", required=True)
    flags.DEFINE_string("output", None, "The file to write; by default report.html in the workdir.")
    cli.run(main)
