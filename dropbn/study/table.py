"""A study's table: what its members found, beside the paper's values, and what that says to the claims."""

import json
import math
import pathlib
from collections.abc import Callable

import rich.console

from dropbn.errors import DropbnError, headline
from dropbn.results import Result
from dropbn.study import claims, estimates, finished_runs
from dropbn.train import workdir

ABOUT_CLAIMS = (
    "Means of differences paired by seed, of accuracies by test image too, and half widths of their 95 % "
    "intervals, which are not adjusted for the number of claims. Over: what the interval is over; se: the "
    "standard errors from seeds and from images alone. The two-sided p is adjusted by Holm over the claims "
    "of this table, and a claim is confirmed or refuted where p adjusted is 5 % at most; p fdr is adjusted "
    "by Benjamini and Hochberg. Questions are answered (more, less) by p, each alone. Smaller here: the "
    "unadjusted interval lies below the paper's difference. Seeds needed: so many would tell the paper's "
    "difference from 0 at the spread seen (two-sided 5 %, power 80 %). Images needed: no number of seeds is "
    "enough on these test images, and so many images are needed at least."
)
# Where a table is of another network or other data than the paper's: the head of the paper's differences.
_OTHER = "paper (other network and data)"
_MEANINGS = {
    "difference": "value - paper",
    "adjusted": "value with BN statistics taken again as Li et al.'s code likely does (li2018_torch)",
    "literally_adjusted": "as their text says (li2018)",
    "recalibrated": "value with the population's statistics",
    "shift": "the largest max(r, 1/r) over BN layers, r being real / remembered variance",
}
# What a metric's values are: offset + factor * accuracy, in %.
_VALUES = {"accuracy": (0, 1), "error": (100, -1)}


def row(
    cell: finished_runs.Cell, metric: str, paper_adjusted: float | None = None, comparable: bool = True
) -> dict:
    """A cell's row: means over seeds with half widths of 95 % intervals over seeds alone.

    Args:
      cell: with its finished runs.
      metric: "accuracy" or "error", what the paper's values are.
      paper_adjusted: the paper's value with statistics taken again.
      comparable: whether the paper's value is of the same network on the same data.

    Returns:
      `value` (test accuracy or error, %), `adjusted` and `literally_adjusted` (by Li's recipe, as their code
      likely has it and as their text has it), `recalibrated` (the population's statistics), `shift` (the
      largest max(r, 1/r) over BN layers), each with its `_interval`; `seeds`, `paper`, `difference` (ours -
      the paper's) and `paper_adjusted`; None where there is none. The columns of the paper's values are left
      out where they are not comparable.
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
    found = {"cell": cell.arg, "seeds": len(cell.members)}
    for name, values in numbers.items():
        found[name], found[f"{name}_interval"] = estimates.interval(values) if values else (None, None)
        if name == "value" and comparable:
            both = cell.paper is not None and values
            found |= {"paper": cell.paper, "difference": found["value"] - cell.paper if both else None}
        if name == "adjusted" and comparable:
            found["paper_adjusted"] = paper_adjusted
    return found


def collect(
    directory,
    title: str,
    metric: str,
    cells: list[finished_runs.Cell],
    comparable: bool,
    adjusted: dict,
    claimed: list,
    more: Callable[[], list[dict]] = list,
    **facts,
) -> dict:
    """Writes W/members.csv, correct.csv, table.csv, table.json, table.md and W/figures from what is finished.

    Args:
      directory: the study's workdir W.
      title: of the table.
      metric: "accuracy" or "error", what the paper's values are.
      cells: of the study, with their finished runs.
      comparable: whether the paper's values are of the same networks on the same data.
      adjusted: cell -> the paper's value with statistics taken again.
      claimed: the paper's claims.
      more: draws further figures in W/figures; returns file and caption of each.
      **facts: what else the table says of the study, such as command, seeds, failed.

    Returns:
      What table.json holds.

    Raises:
      DropbnError: members of several editions (`finished_runs.EDITION`).
    """
    finished_runs.refuse_several_editions(cells)
    directory = pathlib.Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    found = {
        "title": title,
        "metric": f"test {metric}, %",
        "comparable": comparable,
        **facts,
        **_provenance(cells),
        "rows": [row(cell, metric, adjusted.get(cell.arg), comparable) for cell in cells],
        "claims": claims.judge(claimed, cells),
        "figures": [],
    }
    finished_runs.publish(directory, cells)
    _write(directory, found)  # Before anything is drawn, so that no figure can keep the numbers back.
    from dropbn.study import figures  # matplotlib takes long to import: whoever trains need not wait for it.

    # Published members have no curves.
    here = [cell._replace(members=[one for one in cell.members if one.records]) for cell in cells]
    drawn = [*figures.draw(here, directory / "figures", metric), *more()]
    found["figures"] = [figure | {"file": f"figures/{figure['file']}"} for figure in drawn]
    _write(directory, found)
    return found


def refuse_another(directory, config: str) -> None:
    """Raises if a study's workdir holds the table of another one; `config` is FILE:TABLE."""
    file = pathlib.Path(directory, "table.json")
    there = json.loads(file.read_text())["config"] if file.exists() else config
    if there != config:
        raise DropbnError(f"{directory} holds the study {there}; choose another --workdir.")


def _write(directory, found):
    workdir.replace(directory / "table.json", json.dumps(found, indent=1) + "\n")
    workdir.replace(directory / "table.csv", Result(found["rows"]).to_csv())
    workdir.replace(directory / "table.md", markdown(found))


def show(found: dict, console: rich.console.Console) -> None:
    """Prints what was run of a table.json: its cells and the verdicts on its claims."""
    for name, title, keys in (
        (
            "rows",
            f"{found['title']}: {found['metric']}",
            ("cell", "seeds", "value", "paper", "adjusted", "shift"),
        ),
        ("claims", "Claims", ("claim", "difference", "p_adjusted", "verdict")),
    ):
        if run := [row for row in found[name] if row["seeds"]]:
            texts = [{key: row[key] for key in keys if key in row} for row in formatted(run)]
            console.print(Result(texts, title))


def about_rows(rows: list[dict], metric: str) -> str:
    """What the numbers of rows are, as far as any row has them, in two sentences."""
    known = {key for row in rows for key, value in row.items() if value is not None}
    meanings = {key: meaning for key, meaning in {"value": metric, **_MEANINGS}.items() if key in known}
    said = "; ".join(f"{key}: {meaning}" for key, meaning in meanings.items())
    return (
        f"Means over seeds, and half widths of their 95 % intervals (Student's t over seeds alone). {said}."
    )


def claim_rows(found: dict) -> list[dict]:
    """The claims of a table.json, what a reader looks for first.

    "paper" is headed by what it is of where values are not comparable.
    """
    head = "paper" if found.get("comparable", True) else _OTHER
    first = ("claim", "verdict", "difference", "interval", "paper")
    return [
        {head if key == "paper" else key: row[key] for key in dict.fromkeys((*first, *row)) if key in row}
        for row in found.get("claims", [])
    ]


def markdown(found: dict) -> str:
    """A table.json as Markdown: how it was run, the claims, the rows, the figures."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        f"# {found['title']}",
        f"    {found['command']}",
        f"Seeds {_listed(found['seeds'])}; {found['device']}; {versions}; {found['date']}; commit "
        f"{found['commit']}.",
        about_rows(found["rows"], found["metric"]),
    ]
    if found["claims"]:
        parts += ["## Claims", ABOUT_CLAIMS, _markdown_table(claim_rows(found))]
    parts += ["## Cells", _markdown_table(found["rows"])]
    parts += [f"![{figure['caption']}]({figure['file']})" for figure in found["figures"]]
    for member in found["failed"]:
        parts.append(f"Failed: {member['member']}: {headline(member['error'])}")
    if found["unfinished"] > 0:
        parts.append(f"Not run: {found['unfinished']} members.")
    return "\n\n".join(parts) + "\n"


def formatted(rows: list[dict]) -> list[dict]:
    """Rows of text, each number with its interval in one column; columns without a number are left out."""
    columns = [
        key for key in rows[0] if not key.endswith("interval") and any(row[key] is not None for row in rows)
    ]
    return [{key: _text(row, key) for key in columns} for row in rows]


def _markdown_table(rows):
    texts = formatted(rows)
    lines = [
        [key.replace("_", " ") for key in texts[0]],
        ["---" if isinstance(rows[0][key], str) else "---:" for key in texts[0]],
    ]
    lines += [[text.replace("|", "\\|") for text in row.values()] for row in texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(row, key):
    value = row[key]
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if key in ("p", "p_adjusted", "p_fdr"):
        return f"{value:.2g}"
    # A claim's only interval is that of its difference.
    half = row.get(f"{key}_interval", row.get("interval") if key == "difference" else None)
    decimals = 3 if {key, row.get("metric")} & {"shift", "loss", "test_loss"} else 2
    if error := value if key.startswith("se_") else half:  # At least one digit of it is seen.
        decimals = min(max(decimals, -math.floor(math.log10(error))), 6)
    return f"{value:.{decimals}f}" + ("" if half is None else f" +- {half:.{decimals}f}")


def _listed(seeds):
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 else " and ".join(map(str, seeds)) or "none"


def _provenance(cells):
    """Where the members come from: each fact once, those that differ beside each other."""
    known = [one.provenance for cell in cells for one in cell.members]

    def each(key):
        return sorted({about[key] for about in known if key in about})

    dates = each("date")
    return {
        "device": ", ".join(each("device")),
        "versions": {name: ", ".join(each(name)) for name in ("python", "jax", "flax")},
        "commit": ", ".join(each("commit")),
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    }
