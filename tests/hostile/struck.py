"""The commands that faults strike, what stands before and after them, and whether it is whole."""

import json

from dropbn.study.table_text import markdown
from tests.hostile import made

REPORTED = ("shift.csv", "shift.png", "flips.png", "report.json")


def words_of(name, directory):
    return {
        "train": ["train.py", f"--workdir={directory}/w", *made.MLP, made.SHORT],
        "eval": ["eval.py", f"--workdir={directory}/run"],
        "report": ["dropbn", "report", f"--workdir={directory}/run"],
        "collect": [*made.STUDY, f"--workdir={directory}/study", *made.MEMBER, "--collect"],
        "study": [*made.STUDY, f"--workdir={directory}/new", *made.MEMBER],
    }[name]


def before_and_after(name, directory):
    """{file: (what stands there before, what the command leaves, what it leaves for a while)}."""
    if name in ("eval", "report"):
        root, names = made.copy("run", directory), [f"eval/{file}" for file in REPORTED]
        names = names if name == "eval" else ["report.html"]
    elif name == "collect":
        root = made.copy("study", directory)
        names = ["table.csv", "table.md", *_figures(root)]
    else:
        return {}
    found = {}
    for each in names:
        # A report.html tells its workdir's name.
        new = plain(made.root() / root.name / each)
        (root / each).write_bytes(b"old")
        found[root / each] = (b"old", new, new)
    if name == "collect":  # The numbers are written before the figures are drawn.
        table = json.loads((made.root() / "study" / "table.json").read_text())
        early = markdown(table | {"figures": []}).encode().replace(str(made.root()).encode(), b"W")
        found[root / "table.md"] = *found[root / "table.md"][:2], early
    return found


def _figures(root):
    return [figure["file"] for figure in json.loads((root / "table.json").read_text())["figures"]]


def plain(file):
    """The content of a file without the name of its workdir."""
    content = file.read_bytes().replace(b"<wbr>", b"")
    for place in (made.root(), file.parents[1], file.parents[2]):
        content = content.replace(str(place).encode(), b"W")
    return content


def torn(files):
    return [str(file) for file, whole in files.items() if plain(file) not in whole]


def records(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


def table_of(directory):
    found = json.loads((directory / "table.json").read_text())
    return {key: value for key, value in found.items() if key not in ("date", "command", "figures")}
