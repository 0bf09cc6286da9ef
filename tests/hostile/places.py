"""Something else in the place of a file or a directory."""

import os
import shutil
import socket
import stat

from tests.hostile import made, struck
from tests.hostile.doors import run
from tests.hostile.ends import HOLE, Case, judge


def cases() -> list[Case]:
    """All cases of this file."""
    return list(_in_the_place())


def _socket(path):
    with socket.socket(socket.AF_UNIX) as made_there:
        here = os.getcwd()
        os.chdir(path.parent)
        made_there.bind(path.name)
        os.chdir(here)


def _in_the_place():
    kinds = {
        "a file": lambda path: path.write_text("notes"),
        "a directory": lambda path: (path.mkdir(), (path / "kept").write_text("notes")),
        "a pipe": os.mkfifo,
        "a socket": _socket,
        "a link outside": lambda path: path.symlink_to(path.parents[2] / "outside"),
        "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
    }
    places = {
        "train": ["run/checkpoints", "run/.lock", "run/metrics.jsonl", "run/config.json", "run"],
        "eval": ["run/eval", *(f"run/eval/{file}" for file in struck.REPORTED), "run/checkpoints"],
        "report": ["run/report.html", "run/eval", "run/eval/shift.png"],
        "collect": [
            "study/figures",
            "study/table.json",
            "study/table.md",
            "study/members.csv",
            "study/members",
        ],
    }
    for name, paths in places.items():
        for path in paths:
            for kind, make in kinds.items():
                if kind == "a directory" and path in ("run", "run/eval", "study/figures", "study/members"):
                    continue

                def go(directory, name=name, path=path, make=make):
                    outside = directory.parent / "outside" / directory.name
                    outside.mkdir(parents=True)
                    (outside / "kept").write_text("notes")
                    inner = directory / "a" / "b"
                    inner.mkdir(parents=True)
                    (directory / "outside").symlink_to(outside)
                    (directory / "a" / "outside").symlink_to(outside)
                    root = made.copy("study" if name == "collect" else "run", inner)
                    target = inner / path
                    if target.is_dir():
                        shutil.rmtree(target)
                    else:
                        target.unlink()
                    make(target)
                    before = target.lstat()
                    words = struck.words_of(name, inner)
                    if name == "train":
                        words[1] = f"--workdir={root}"
                    end, said = judge(run(words, directory))
                    after = target.lstat() if os.path.lexists(target) else None
                    # As the file checkpoint_dir, a link may say where checkpoints are.
                    if path != "run/checkpoints" and sorted(each.name for each in outside.iterdir()) != [
                        "kept"
                    ]:
                        return HOLE, f"written outside: {list(outside.iterdir())}"
                    gone = after is None or (before.st_mode, before.st_ino) != (after.st_mode, after.st_ino)
                    if gone and not stat.S_ISREG(before.st_mode):  # A regular file may be replaced.
                        return HOLE, "what stood there was replaced"
                    return end, said

                yield Case("in the place", f"{name}: {kind} as {path}", go)
