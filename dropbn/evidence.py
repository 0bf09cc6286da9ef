"""What the runs of a study have left: the members of every cell, read from their workdirs."""

import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from dropbn import workdir


class Finished(NamedTuple):
    """A finished run of a cell.

    Attributes:
      seed: its seed.
      records: of metrics.jsonl, a dict an epoch.
      summary: of eval/summary.json; see `dropbn.evaluation.summarize`.
    """

    seed: int
    records: list[dict]
    summary: dict


class Cell(NamedTuple):
    """A cell of a table with its finished runs.

    Attributes:
      arg: the cell, as after the colon of --config=configs/study.py:ARG.
      config: of its first run, as nested dicts.
      paper: the paper's value, or None.
      members: its finished runs, by seed.
    """

    arg: str
    config: dict
    paper: float | None
    members: list[Finished]

    def values(self, key: str) -> dict[int, float]:
        """seed -> a number of the summaries, where they have it."""
        return {m.seed: m.summary[key] for m in self.members if m.summary.get(key) is not None}

    def shifts(self) -> list[float]:
        """The `largest_shift` of every run that has BN."""
        found = (largest_shift(member.summary.get("shift")) for member in self.members)
        return [shift for shift in found if shift is not None]


def write(directory, summary: dict) -> None:
    """Marks the run in a workdir as finished, whatever error it left before."""
    to = pathlib.Path(directory, "eval")
    to.mkdir(exist_ok=True)
    workdir.replace(to / "summary.json", json.dumps(summary) + "\n")
    pathlib.Path(directory, "error.txt").unlink(missing_ok=True)


def write_error(directory, error: str) -> pathlib.Path:
    """Keeps the error of a run that failed in its workdir; returns the file."""
    file = pathlib.Path(directory, "error.txt")
    file.parent.mkdir(parents=True, exist_ok=True)
    workdir.replace(file, error)
    return file


def error(directory) -> str:
    """The error that the run in a workdir has left; "" where there is none."""
    file = pathlib.Path(directory, "error.txt")
    return file.read_text(encoding="utf-8") if file.exists() else ""


def finished(directory) -> bool:
    """Whether a workdir holds a finished run."""
    return pathlib.Path(directory, "eval", "summary.json").exists()


def cell(arg: str, paper: float | None, directories: Iterable) -> Cell:
    """A cell and its finished runs in some workdirs."""
    directories = [directory for directory in directories if finished(directory)]
    found = []
    for directory in directories:
        summary = json.loads(pathlib.Path(directory, "eval", "summary.json").read_text())
        found.append(Finished(workdir.read_config(directory).seed, workdir.read_metrics(directory), summary))
    config = workdir.read_config(directories[0]).to_dict() if directories else {}
    return Cell(arg, config, paper, sorted(found, key=lambda member: member.seed))


def largest_shift(rows: list[dict] | None) -> float | None:
    """The largest max(r, 1 / r) over BN layers of shift ratio r (Li et al. 2018, Fig. 4); None without BN.

    Args:
      rows: of `dropbn.shift.Shift`, each with "ratio"; none for a network without BN.
    """
    return max((max(row["ratio"], 1 / row["ratio"]) for row in rows or ()), default=None)
