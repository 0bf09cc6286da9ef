"""A study's table: what its members found, the paper's values beside it, and the verdicts on its claims."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from dropbn import readers, writers
from dropbn.errors import DropbnError, shown
from dropbn.results import Result
from dropbn.study import estimates, finished_runs, provenance, verdicts
from dropbn.study.table_text import markdown

# metric -> (offset, factor): its values are offset + factor * accuracy, in %.
_VALUES = {"accuracy": (0, 1), "error": (100, -1)}


def row(
    cell: finished_runs.Cell, metric: str, paper_adjusted: float | None = None, comparable: bool = True
) -> dict:
    """A cell's row: means over seeds with half widths of 95 % intervals over seeds alone.

    Args:
      cell: the cell with its finished runs.
      metric: what the paper's values are, "accuracy" or "error".
      paper_adjusted: the paper's value with re-estimated statistics.
      comparable: whether the paper's value belongs to the same network on the same data.

    Returns:
      `value` (test accuracy or error, %), `adjusted` and `literally_adjusted` (with Li's recipe, as their
      code likely has it and as their text has it), `recalibrated` (with the population's statistics) and
      `shift` (the largest max(r, 1/r) over BN layers), each with its `_interval`; `seeds`, `paper`,
      `difference` (ours - the paper's) and `paper_adjusted`. A missing value is None. The paper's columns are
      left out if its values are not comparable.
    """
    offset, factor = _VALUES[metric]

    def percent(number):
        return [offset + factor * value for value in cell.values(number).values()]

    numbers = {
        "value": percent("accuracy"),
        "adjusted": percent("adjusted_accuracy"),
        "literally_adjusted": percent("literally_adjusted_accuracy"),
        "recalibrated": percent("recalibrated_accuracy"),
        "shift": list(cell.values("shift").values()),
    }
    found: dict = {"cell": cell.arg, "seeds": len(cell.members)}
    for name, values in numbers.items():
        found[name], found[f"{name}_interval"] = estimates.interval(values) if values else (None, None)
        if name == "value" and comparable:
            both = cell.paper is not None and values
            found |= {"paper": cell.paper, "difference": found["value"] - cell.paper if both else None}
        if name == "adjusted" and comparable:
            found["paper_adjusted"] = paper_adjusted
    return found


def collect(
    title: str,
    metric: str,
    cells: list[finished_runs.Cell],
    comparable: bool,
    adjusted: dict,
    claimed: list,
    **facts: Any,
) -> dict:
    """The contents of table.json from what is finished, without figures.

    Args:
      title: the title of the table.
      metric: what the paper's values are, "accuracy" or "error".
      cells: the cells of the study with their finished runs.
      comparable: whether the paper's values belong to the same networks on the same data.
      adjusted: cell -> the paper's value with re-estimated statistics.
      claimed: the paper's claims.
      **facts: what else the table says about the study, such as command, seeds, failed.

    Raises:
      DropbnError: the members belong to several editions (`provenance.EDITION`).
    """
    provenance.refuse_several_editions(cells)
    return {
        "title": title,
        "metric": f"test {metric}, %",
        "comparable": comparable,
        **facts,
        **provenance.of_cells(cells),
        "rows": [row(cell, metric, adjusted.get(cell.arg), comparable) for cell in cells],
        "claims": verdicts.judge(claimed, cells),
        "figures": [],
    }


def write(
    directory: str | os.PathLike,
    found: dict,
    cells: list[finished_runs.Cell],
    metric: str,
    more: Callable[[], list[dict]] = list,
) -> None:
    """Writes W/members.csv, correct.csv, table.csv, table.json, table.md and W/figures.

    Args:
      directory: the study's workdir W.
      found: what `collect` returned; the figures are added.
      cells: the cells of the study with their finished runs.
      metric: what the paper's values are, "accuracy" or "error".
      more: draws further figures in W/figures; returns the file and caption of each.

    Raises:
      DropbnError: a file cannot be written. Those before it are.
    """
    directory = writers.make_directory(directory)
    finished_runs.publish(directory, cells)
    _write(directory, found)  # Before anything is drawn: a figure that fails must not cost the numbers.
    from dropbn.study import figures  # Imported late: matplotlib takes long, and training does not need it.

    # Published members have no curves to draw.
    here = [cell._replace(members=[one for one in cell.members if one.records]) for cell in cells]
    drawn = [*figures.draw(here, writers.make_part(directory, "figures"), metric), *more()]
    found["figures"] = [figure | {"file": f"figures/{figure['file']}"} for figure in drawn]
    _write(directory, found)


def refuse_another(directory: str | os.PathLike, config: str) -> None:
    """Raises if the workdir of a study holds the table of another study, or one that cannot be read.

    `config` is FILE:TABLE.
    """
    file = pathlib.Path(directory, "table.json")
    there = readers.read_json(file, {"config": str})["config"] if os.path.exists(file) else config
    if there != config:
        raise DropbnError(f"{directory} holds the study {shown(there)}; choose another --workdir.")


def _write(directory, found):
    writers.replace(directory / "table.json", json.dumps(found, indent=1) + "\n")
    writers.replace(directory / "table.csv", Result(found["rows"]).to_csv())
    writers.replace(directory / "table.md", markdown(found))
