"""The page of a study."""

from dropbn.errors import headline
from dropbn.page import parts
from dropbn.page.parts import joined
from dropbn.page.tables import table_of_rows
from dropbn.study.table_text import ABOUT_CLAIMS, about_rows, claim_rows

_VERDICTS = ("confirmed", "confirmed, smaller here", "refuted", "smaller here", "undecided", "not run")


def page(table: dict, images: dict[str, bytes | None]) -> str:
    """The page of a study.

    Args:
      table: the contents of table.json: title, config, command, metric, comparable, seeds, device, versions,
        date; `rows` of cells and `claims`, each in the form that `table_of_rows` takes; `figures` with file
        and caption; `failed` with member and error; `unfinished`, a number of members. Missing keys are left
        out.
      images: file of a figure -> its bytes, or None if it cannot be read.

    Returns:
      The HTML.
    """
    claims = claim_rows(table)
    rows = table.get("rows", [])
    captions = {figure["file"]: figure["caption"] for figure in table.get("figures", [])}
    sections = {
        "What was run": parts.definitions(_study_terms(table)),
        "Verdicts": _verdicts([claim["verdict"] for claim in claims]),
        "Claims": table_of_rows(claims, ABOUT_CLAIMS),
        "Results": table_of_rows(rows, about_rows(rows, table.get("metric", "")))
        or "<p>No cell has a result yet.</p>",
        "Figures": parts.figures(captions, images),
        "Failed members": _failed(table.get("failed", [])),
    }
    return parts.document(table.get("title", "A study"), "A study", sections)


def _study_terms(table):
    """term -> what it says: how a study was run."""
    versions = [f"{name} {version}" for name, version in table.get("versions", {}).items()]
    left = table.get("unfinished", 0)
    return {
        "command": parts.code(table.get("command", "")),
        "config": parts.code(table.get("config", "")),
        "metric": table.get("metric", ""),
        "seeds": joined(table.get("seeds", [])),
        "device": table.get("device", ""),
        "versions": joined(versions),
        "date": table.get("date", ""),
        "unfinished": f"{left} member{'s' * (left != 1)}; the tables hold the others" if left else "",
    }


def _verdicts(found):
    verdicts = dict.fromkeys([*_VERDICTS, *found])
    return parts.counts({verdict: found.count(verdict) for verdict in verdicts}) if found else ""


def _failed(members):
    """A table of the errors' headlines, followed by each longer error, folded."""
    errors = {member["member"]: member["error"].strip() for member in members}
    rows = [{"member": name, "error": headline(error)} for name, error in errors.items()]
    longer = {f"{name}: the whole error": error for name, error in errors.items() if "\n" in error}
    folded = [parts.folded(summary, parts.listing(error)) for summary, error in longer.items()]
    return table_of_rows(rows, "Runs that ended in an error.") + "".join(folded)
