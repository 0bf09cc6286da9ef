"""Writes the results in the workdir of a study or a run into one HTML file.

    python -m dropbn report --workdir=runs/table3
    python -m dropbn report --workdir=runs/digits --output=digits.html

`dropbn.page.study` and `dropbn.page.run` say what the page shows.
"""

import contextlib
import os
import pathlib
import shlex

from absl import flags

from dropbn import cli, readers, writers
from dropbn.errors import DropbnError, shown
from dropbn.page import run as run_page
from dropbn.page import study as study_page
from dropbn.train import console
from dropbn.train import workdir as workdirs

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_IMAGE = 20 * 1024**2  # bytes


def write_page(workdir: str | os.PathLike, output: str | os.PathLike | None = None) -> pathlib.Path:
    """Writes the page of the workdir of a study or a run; an existing page is replaced in one step.

    Args:
      workdir: a study's workdir, with table.json, or a run's, with config.json.
      output: the file to write; by default report.html in the workdir.

    Returns:
      The file that was written.

    Raises:
      DropbnError: the workdir holds neither a study nor a run, the study has no table yet, its contents
        cannot be read, or the file cannot be written.
    """
    directory = pathlib.Path(workdir)
    with _said_in_a_sentence(directory):
        text = _page(directory)
    path = directory / "report.html" if output is None else pathlib.Path(output)
    writers.replace(path, text)
    return path


@contextlib.contextmanager
def _said_in_a_sentence(directory):
    """Turns what goes wrong if a file has other fields than dropbn gives it into a DropbnError."""
    try:
        yield
    except DropbnError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = shown(f"{type(error).__name__}: {error}")
        raise DropbnError(
            f"No page can be made of {directory}: its files do not hold what dropbn writes ({what})."
        ) from error


def _page(directory):
    table = _read_json(directory / "table.json")
    if table is not None:
        return study_page.page(
            table, _images(directory, [figure["file"] for figure in table.get("figures", [])])
        )
    if (directory / "config.json").exists():
        return _run_page(directory)
    if (directory / "members").exists():
        command = f"python -m dropbn study --config=FILE:TABLE --workdir={shlex.quote(str(directory))}"
        raise DropbnError(f"{directory} holds a study without a table yet; run `{command}`, which writes it.")
    raise DropbnError(f"{directory} holds neither a study (no table.json) nor a run (no config.json).")


def _run_page(directory):
    config, records = workdirs.read_config(directory).to_dict(), workdirs.read_metrics(directory)
    figures = sorted(path.relative_to(directory).as_posix() for path in (directory / "eval").glob("*.png"))
    evaluation, images = _read_json(directory / "eval" / "report.json"), _images(directory, figures)
    return run_page.page(
        str(directory), config, records, evaluation, images, console.evaluation_command(directory)
    )


def _read_json(file):
    """The JSON object in a file; None if there is no such file."""
    return readers.read_json(file) if os.path.lexists(file) else None


def _images(directory, files):
    """file -> its bytes; None if it is no PNG of the workdir, or is too large for a page."""
    return {file: _image(directory.resolve(), file) for file in files}


def _image(directory, file):
    try:
        path = (directory / file).resolve()  # A path may lead out of the workdir, and so may a link.
        if not (path.is_relative_to(directory) and path.is_file() and path.stat().st_size <= _LARGEST_IMAGE):
            return None
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError):  # A loop of links, or a name that no file can have.
        return None
    return content if content.startswith(_PNG) else None


def main() -> None:
    """Writes the page of --workdir from the command line."""
    path = write_page(flags.FLAGS.workdir, flags.FLAGS.output)
    print(f"Written to {path} ({path.stat().st_size / 1000:,.0f} kB)")


def run() -> None:
    """The command `dropbn report`."""
    flags.DEFINE_string("workdir", None, "The workdir of a study or of a run.", required=True)
    flags.DEFINE_string("output", None, "The file to write; by default report.html in the workdir.")
    cli.run(main)
