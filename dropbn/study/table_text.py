"""A study's table as text: as Markdown, as it is printed, and what its numbers mean in words."""

import math

import rich.console

from dropbn.errors import headline
from dropbn.results import Result

ABOUT_CLAIMS = (
    "A difference is the mean of differences paired by seed (for accuracies also by test image), +- the "
    "half width of its 95 % interval, which is not adjusted for the number of claims. Over: what the "
    "interval is over; se: the standard errors from seeds alone and from images alone. p is two-sided; p "
    "adjusted is adjusted by Holm, p fdr by Benjamini and Hochberg, over the claims of this table. A claim "
    "is confirmed or refuted if p adjusted is at most 5 %. A question is answered (more, less) by its own "
    "p. Smaller here: the unadjusted interval lies below the paper's difference. Seeds needed: this many "
    "seeds would tell the paper's difference from 0 at the spread seen here (two-sided 5 %, power 80 %). "
    "Images needed: no number of seeds is enough on these test images; at least this many images are "
    "needed."
)
# The heading of the paper's differences if its network or data are not those of the table.
_OTHER = "paper (other network and data)"
_MEANINGS = {
    "difference": "value - paper",
    "adjusted": "value with BN statistics re-estimated as Li et al.'s code likely does it (li2018_torch)",
    "literally_adjusted": "value with BN statistics re-estimated as their text says (li2018)",
    "recalibrated": "value with the population's BN statistics",
    "shift": "the largest max(r, 1/r) over BN layers, where r is real / remembered variance",
}


def show(found: dict, console: rich.console.Console) -> None:
    """Prints the cells of a table.json that were run, and the verdicts on its claims."""
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
    """What the numbers in rows mean, in two sentences; numbers that no row has are left out."""
    known = {key for row in rows for key, value in row.items() if value is not None}
    meanings = {key: meaning for key, meaning in {"value": metric, **_MEANINGS}.items() if key in known}
    said = "; ".join(f"{key}: {meaning}" for key, meaning in meanings.items())
    return f"Means over seeds +- half widths of their 95 % intervals (Student's t over seeds alone). {said}."


def claim_rows(found: dict) -> list[dict]:
    """The claims of a table.json, with the columns that a reader looks for in front.

    The heading of "paper" says so if the paper's values are not comparable.
    """
    head = "paper" if found.get("comparable", True) else _OTHER
    first = ("claim", "verdict", "difference", "interval", "paper")
    return [
        {head if key == "paper" else key: row[key] for key in dict.fromkeys((*first, *row)) if key in row}
        for row in found.get("claims", [])
    ]


def markdown(found: dict) -> str:
    """A table.json as Markdown: how the study was run, the claims, the cells, the figures."""
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
        parts.append(f"Not run: {found['unfinished']} member{'s' * (found['unfinished'] > 1)}.")
    return "\n\n".join(parts) + "\n"


def formatted(rows: list[dict]) -> list[dict]:
    """Rows as text, with a number and its interval in one column; columns without any value are left out."""
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
    # The only interval of a claim belongs to its difference.
    half = row.get(f"{key}_interval", row.get("interval") if key == "difference" else None)
    decimals = 3 if {key, row.get("metric")} & {"shift", "loss", "test_loss"} else 2
    if error := value if key.startswith("se_") else half:  # Enough decimals to show one digit of the error.
        decimals = min(max(decimals, -math.floor(math.log10(error))), 6)
    return f"{value:.{decimals}f}" + ("" if half is None else f" +- {half:.{decimals}f}")


def _listed(seeds):
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 else " and ".join(map(str, seeds)) or "none"
