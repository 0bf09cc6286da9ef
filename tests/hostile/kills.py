"""Commands that are killed at random moments, and then go on."""

import random
import signal
import time

from dropbn import writers
from tests.hostile import made, struck
from tests.hostile.doors import Started, run
from tests.hostile.ends import ACCEPTED, HOLE, SENTENCE, Case, judge

# How often each is killed by SIGKILL; by SIGTERM half as often.
_KILLS = {"train": 8, "eval": 8, "collect": 12, "report": 12, "study": 4}
# Seconds that each takes undisturbed on two cores, within which it is struck.
_SECONDS = {"train": 5.0, "eval": 7.0, "collect": 1.0, "report": 0.5, "study": 12.0}


def cases() -> list[Case]:
    """All cases of this file."""
    return list(_kills())


def _kills():
    for name, most in _KILLS.items():
        for number, times in ((signal.SIGKILL, most), (signal.SIGTERM, most // 2)):
            for i in range(times):
                yield Case("kills", f"{number.name} {name} #{i}", _kill(name, number, i))
    for name in ("train", "eval", "report"):
        yield Case("kills", f"SIGINT {name}", _kill(name, signal.SIGINT, 0))


def _kill(name, number, index):
    def go(directory):
        files = struck.before_and_after(name, directory)
        started = Started(struck.words_of(name, directory), directory)
        time.sleep(random.Random(f"{name} {number} {index}").uniform(0, _SECONDS[name]))
        started.send(number)
        ended = started.end()
        if ended.hung:
            return judge(ended)
        if ended.status != -number:  # It was done, or said what happened.
            end, said = judge(ended)
            if end not in (SENTENCE, ACCEPTED):
                return end, said
        if torn := struck.torn(files):
            return HOLE, f"neither old nor new: {torn}"
        if len(left := list(directory.rglob(f".*{writers.SUFFIX}"))) > 1:
            return HOLE, f"a kill leaves one file at most: {left}"
        # The same command goes on, to what an undisturbed one leaves.
        again = run(struck.words_of(name, directory), directory)
        end, said = judge(again, "pass")
        if end != ACCEPTED:
            return end, said
        wrong = [file for file, (_, new, _) in files.items() if struck.plain(file) != new]
        if name == "train" and struck.records(directory / "w") != struck.records(made.root() / "run"):
            wrong.append("metrics.jsonl")
        if name == "study" and struck.table_of(directory / "new") != struck.table_of(made.root() / "study"):
            wrong.append("table.json")
        return (
            (HOLE, f"another end: {wrong}") if wrong else (SENTENCE if ended.status > 0 else ACCEPTED, said)
        )

    return go
