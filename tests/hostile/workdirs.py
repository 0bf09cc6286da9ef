"""Workdirs of runs and studies whose files were edited, cut or replaced."""

import json
import random

from tests.hostile import made
from tests.hostile.doors import case
from tests.hostile.ends import Case


def cases() -> list[Case]:
    """All cases of this file."""
    return [*_runs(), *_studies()]


# Files of a run.

_BAD_TEXTS = {
    "empty": "",
    "cut": '{"seed": 1, "mod',
    "text": "notes",
    "number": "5",
    "list": "[1, 2]",
    "null": "null",
    "no fields": "{}",
    "deep": '{"a":' * 50_000,
    "long": json.dumps({made.LONG: made.LONG}),
    "infinite": '{"seed": Infinity, "step": NaN}',
    "huge number": '{"seed": ' + "9" * 5000 + "}",
    "markup": '{"seed": "<script>alert(1)</script>"}',
}
_BINARY = bytes(range(256)) * 4


def _bad_writes():
    """What may be put in the place of a file of JSON or text: name -> function of its path."""
    writes = {name: lambda path, text=text: path.write_text(text) for name, text in _BAD_TEXTS.items()}
    return writes | {"binary": lambda path: path.write_bytes(_BINARY)} | made.INSTEAD


def _runs():
    doors = {
        "train": [*made.TRAIN[:1], "--workdir={}/run", *made.MLP, "--config.duration=3 epochs"],
        "eval": ["eval.py", "--workdir={}/run"],
        "report": ["dropbn", "report", "--workdir={}/run"],
    }
    doors["train"][-1] = made.SHORT
    reading = {
        "config.json": ("train", "eval", "report"),
        "metrics.jsonl": ("train", "report"),
        "checkpoint_dir": ("train", "eval"),
        "eval/report.json": ("report",),
    }
    for file, commands in reading.items():
        for name, write in _bad_writes().items():
            for command in commands:

                def prepare(directory, file=file, write=write):
                    path = made.copy("run", directory) / file
                    path.unlink(missing_ok=True)
                    write(path)

                # A cut last line of metrics.jsonl is left out, and no records are no mistake.
                may = "fail" if file == "config.json" else "either"
                yield case("workdirs", f"{command}: {file} {name}", doors[command], may, prepare)
    edits = {
        "seed": "<b>",
        "batch_size": 0,
        "model__depth": -1,
        "model__block": "[",
        "data__name": "npz:/etc/passwd",
    }
    edits |= {
        "model__noise__rate": 7,
        "optimizer__learning_rate": "x",
        "eval__train_examples": -5,
        "task": made.LONG,
    }
    edits |= {
        "duration": "x",
        "data__dir": "/dev/null",
        "model__name": 3,
        "model__noise": [],
        "extra": {"a": 1},
    }
    for field, value in edits.items():
        for command in ("eval", "report"):

            def prepare(directory, field=field, value=value):
                made.edit(made.copy("run", directory) / "config.json", **{field: value})

            # The page shows what a config says; only eval makes a network of it.
            may = "fail" if command == "eval" and field not in ("seed",) else "either"
            yield case("workdirs", f"{command}: {field}={str(value)[:20]}", doors[command], may, prepare)
    yield from _checkpoints(doors)


def _checkpoints(doors):
    draw = random.Random(1)
    files = sorted(
        str(path.relative_to(made.root() / "run"))
        for path in (made.root() / "run" / "checkpoints" / "44").rglob("*")
        if path.is_file()
    )
    for file in files:
        for name in ("empty", "flipped", "missing"):

            def prepare(directory, file=file, name=name, at=draw.random()):
                path = made.copy("run", directory) / file
                content = bytearray(path.read_bytes())
                if name == "flipped" and content:
                    content[int(at * len(content))] ^= 1 + int(at * 250)
                path.write_bytes(b"" if name == "empty" else content)
                if name == "missing":
                    path.unlink()

            yield case("workdirs", f"eval: {file[-30:]} {name}", doors["eval"], "either", prepare)
            if name == "flipped":
                yield case("workdirs", f"train: {file[-30:]} {name}", doors["train"], "either", prepare)


# Files of a study.


def _studies():
    collect = [*made.STUDY, "--workdir={}/study", *made.MEMBER, "--collect"]
    again = [*made.STUDY, "--workdir={}/study", *made.MEMBER]
    report = ["dropbn", "report", "--workdir={}/study"]
    [member] = [path.relative_to(made.root()) for path in (made.root() / "study/members").glob("*/seed0")]
    member = str(member.relative_to("study"))
    reading = {
        "table.json": ("collect", "report"),
        "members.csv": ("collect",),
        "correct.csv": ("collect",),
        f"{member}/eval/summary.json": ("collect", "again"),
        f"{member}/config.json": ("collect", "again"),
        f"{member}/metrics.jsonl": ("collect",),
    }
    doors = {"collect": collect, "report": report, "again": again}
    for file, commands in reading.items():
        for name, write in _bad_writes().items():
            for command in commands:

                def prepare(directory, file=file, write=write):
                    path = made.copy("study", directory) / file
                    path.unlink()
                    write(path)

                yield case("studies", f"{command}: {file[-25:]} {name}", doors[command], "either", prepare)
    edits = {
        "title": "<script>alert(1)</script>",
        "seeds": ["<img src=x onerror=alert(1)>"],
        "unfinished": "<b>",
        "figures": [{"file": "../../../../etc/passwd", "caption": "x"}],
        "rows": [[1], 5, None],
        "claims": "x",
        "failed": [{"member": 1}],
        "versions": [1],
        "config": made.LONG,
        "metric": None,
    }
    for field, value in edits.items():

        def prepare(directory, field=field, value=value):
            made.edit(made.copy("study", directory) / "table.json", **{field: value})

        def go(directory, field=field, inner=case("studies", "", report, "either", prepare)):
            end, said = inner.run(directory)
            page = directory / "study" / "report.html"
            text = page.read_text() if page.exists() else ""
            if any(bad in text for bad in ("<script>alert", "<img src=x", "root:x:0", "cm9vdDp4OjA")):
                return "hole", f"what was in {field} is in the page"
            return end, said

        yield Case("studies", f"report: {field}={str(value)[:30]}", go)
