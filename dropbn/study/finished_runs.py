"""The finished runs of a study: the members of every cell with their numbers, read and published.

A member is read from its workdir or from the files that a study publishes: `members.csv` holds the numbers of
every member and their provenance, `correct.csv` the test images that it has right. These files are small
enough to commit, and they suffice to judge every claim again.
"""

import base64
import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dropbn import readers, writers
from dropbn.errors import DropbnError
from dropbn.study.numbers import NUMBERS
from dropbn.train import workdir

# What eval/summary.json must hold for a member to count, and what else may be in it.
_SUMMARY = dict.fromkeys(("accuracy", "loss", "train_accuracy", "train_accuracy_test_mode"), readers.NUMBER)
_MORE: dict[str, readers.Kinds] = {
    "recalibrated": dict,
    "correct": dict,
    "provenance": dict,
    "shift": [dict],
    "shift_li2018": [dict],
    "weights": [dict],
}


class Finished(NamedTuple):
    """A finished run of a cell.

    Attributes:
      seed: the seed of the run.
      numbers: name -> value, for those of `numbers.NUMBERS` that the run has.
      correct: BN's statistics -> whether each test image is right, bool (images,). The statistics are
        "running" (as trained) and the recipes of `summary["recalibrated"]`.
      provenance: that of `provenance.of_run`, as text; {} if the run recorded none.
      records: the lines of metrics.jsonl, one for each epoch; [] for a published member.
      summary: eval/summary.json, see `dropbn.train.summary.summarize`; {} for a published member.
    """

    seed: int
    numbers: dict[str, float]
    correct: dict[str, np.ndarray]
    provenance: dict[str, str]
    records: list[dict]
    summary: dict


class Cell(NamedTuple):
    """A cell of a table with its finished runs.

    Attributes:
      arg: the cell, as after the colon of --config=configs/study.py:ARG.
      config: the config of its first run, as nested dicts; {} if all its members are published ones.
      paper: the paper's value, or None.
      members: its finished runs, in the order of their seeds.
    """

    arg: str
    config: dict
    paper: float | None
    members: list[Finished]

    def values(self, number: str) -> dict[int, float]:
        """seed -> a number of `numbers.NUMBERS`, for the members that have it."""
        return {m.seed: m.numbers[number] for m in self.members if number in m.numbers}


def member(seed: int, records: list[dict], summary: dict) -> Finished:
    """A finished run from its records and its summary."""
    numbers = {name: read(summary, records) for name, read in NUMBERS.items()}
    return Finished(
        seed,
        {name: value for name, value in numbers.items() if value is not None},
        {name: unpack(**packed) for name, packed in summary.get("correct", {}).items()},
        {key: str(value) for key, value in summary.get("provenance", {}).items()},
        records,
        summary,
    )


def pack(correct: np.ndarray) -> dict:
    """Booleans as text: {"images": their number, "bits": their bits in base64, the first one highest}."""
    bits = base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")
    return {"images": len(correct), "bits": bits}


def unpack(images: int, bits: str) -> np.ndarray:
    """The booleans that `pack` has packed."""
    packed = np.frombuffer(base64.b64decode(bits, validate=True), np.uint8)
    if len(packed) != -(-images // 8):
        raise ValueError(f"{len(packed)} bytes for the bits of {images} images")
    return np.unpackbits(packed, count=images).astype(bool)


def write(directory: str | os.PathLike, summary: dict) -> None:
    """Marks the run in a workdir as finished and removes an earlier error; `correct` is packed."""
    summary = summary | {"correct": {name: pack(right) for name, right in summary["correct"].items()}}
    to = writers.make_part(directory, "eval")
    writers.replace(to / "summary.json", json.dumps(summary) + "\n")
    pathlib.Path(directory, "error.txt").unlink(missing_ok=True)


def write_error(directory: str | os.PathLike, error: str) -> pathlib.Path:
    """Writes the error of a failed run into its workdir; returns the file."""
    file = writers.make_directory(directory) / "error.txt"
    writers.replace(file, error)
    return file


def error(directory: str | os.PathLike) -> str:
    """The error that the run in a workdir has left; "" if there is none."""
    file = pathlib.Path(directory, "error.txt")
    try:
        return readers.read_text(file) if file.exists() else ""
    except DropbnError as error:
        return str(error)


def finished(directory: str | os.PathLike) -> bool:
    """Whether a workdir holds a finished run."""
    return pathlib.Path(directory, "eval", "summary.json").exists()


def read(directory: str | os.PathLike) -> Finished:
    """The finished run in a workdir.

    Raises:
      DropbnError: its config, records or summary cannot be read, or the summary lacks a number.
    """
    file = pathlib.Path(directory, "eval", "summary.json")
    summary = readers.read_json(file, _SUMMARY)
    readers.check_fields(summary, {name: _MORE[name] for name in _MORE if name in summary}, str(file))
    config, records = workdir.read_config(directory), workdir.read_metrics(directory)
    try:
        found = member(config.seed, records, summary)
        if wrong := [name for name, number in found.numbers.items() if not math.isfinite(number)]:
            raise ValueError(f"{wrong[0]} is not a finite number")
        return found
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DropbnError(f"{file} is not a summary of ours: {type(error).__name__}: {error}.") from error


def cell(
    arg: str,
    paper: float | None,
    directories: Iterable[str | os.PathLike],
    published: Iterable[Finished] = (),
) -> Cell:
    """A cell with its finished runs from workdirs and published files; a workdir's run is preferred.

    A workdir whose run cannot be read does not count; `unreadable` names it.
    """
    directories = [each for each in directories if finished(each) and not unreadable(each)]
    members = {found.seed: found for found in (*published, *map(read, directories))}
    config = workdir.read_config(directories[0]).to_dict() if directories else {}
    return Cell(arg, config, paper, [members[seed] for seed in sorted(members)])


def unreadable(directory: str | os.PathLike) -> str:
    """Why the finished run in a workdir cannot be read; "" if it can, or if none is finished there."""
    try:
        if finished(directory):
            read(directory)
    except DropbnError as error:
        return str(error)
    return ""


def publish(directory: str | os.PathLike, cells: Iterable[Cell]) -> None:
    """Writes members.csv and correct.csv into a study's workdir."""
    known = [(of_cell.arg, one) for of_cell in cells for one in of_cell.members]
    fields = dict.fromkeys(key for _, one in known for key in one.provenance)
    numbers = [{"cell": arg, "seed": one.seed, **one.numbers, **one.provenance} for arg, one in known]
    bits = [
        {"cell": arg, "seed": one.seed, "statistics": statistics, **pack(right)}
        for arg, one in known
        for statistics, right in one.correct.items()
    ]
    directory = pathlib.Path(directory)
    # A member counts once it is in members.csv, so that comes last.
    writers.replace(directory / "correct.csv", _csv(("cell", "seed", "statistics", "images", "bits"), bits))
    writers.replace(directory / "members.csv", _csv(("cell", "seed", *NUMBERS, *fields), numbers))


def published(directory: str | os.PathLike) -> dict[str, list[Finished]]:
    """cell -> its members in the members.csv and correct.csv of a study's workdir; {} without these files.

    Raises:
      DropbnError: a file does not hold what `publish` writes.
    """
    correct: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    found: dict[str, list[Finished]] = {}
    try:
        for row in _rows(directory, "correct.csv"):
            key = row.pop("cell"), int(row.pop("seed"))
            right = unpack(int(row["images"]), row["bits"])
            correct.setdefault(key, {})[row["statistics"]] = right
        for row in _rows(directory, "members.csv"):
            arg, seed = row.pop("cell"), int(row.pop("seed"))
            numbers = {name: float(row[name]) for name in NUMBERS if row.get(name)}
            if not all(map(math.isfinite, numbers.values())):
                raise ValueError(f"a number of {arg}, seed {seed} is not finite")
            about = {key: text for key, text in row.items() if key not in NUMBERS}
            one = Finished(seed, numbers, correct.get((arg, seed), {}), about, [], {})
            found.setdefault(arg, []).append(one)
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise DropbnError(
            f"The members.csv and correct.csv in {directory} cannot be read: {error}. Copy them again."
        ) from error
    return found


def _rows(directory, name):
    file = pathlib.Path(directory, name)
    return list(csv.DictReader(io.StringIO(readers.read_text(file)))) if file.exists() else []


def _csv(fields, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
