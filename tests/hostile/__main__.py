"""Runs all cases, or those whose names have a word: python -m tests.hostile [WORD]

The exit status is 1 if a case ends in a traceback, a hang or a hole.
"""

import collections
import datetime
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

_WORKERS = 2
_cases: list = []  # which the workers share, because a case cannot be sent to them


def _work(number):
    """(kind, name, how it ended, what was said) of a case, in a directory of its own."""
    from tests.hostile import ends

    case = _cases[number]
    directory = pathlib.Path(tempfile.mkdtemp(dir=os.environ["HOSTILE_ROOT"]))
    began = time.monotonic()
    try:
        end, said = case.run(directory)
    except Exception:  # A mistake of the test itself counts as the worst.
        end, said = ends.TRACEBACK, "the test itself: " + traceback.format_exc()
    shutil.rmtree(directory, ignore_errors=True)
    return case.kind, case.name, end, said, time.monotonic() - began


def main(word: str = "") -> int:
    """Runs the cases and prints a table; returns the exit status."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="hostile-"))
    os.chmod(root, 0o755)
    os.environ |= {
        "HOSTILE_ROOT": str(root),
        "TFDS_DATA_DIR": str(root / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    from tests.hostile import (
        arguments,
        datasets,
        doors,
        ends,
        faults,
        flags,
        kills,
        made,
        models,
        places,
        workdirs,
    )

    began = time.monotonic()
    doors.preload()
    made.make(root / "made")
    _cases[:] = [
        case
        for module in (flags, models, datasets, workdirs, arguments, kills, places, faults)
        for case in module.cases()
        if word in f"{case.kind}: {case.name}"
    ]
    counts = collections.Counter()
    # Forked before any backend is started: JAX's threads would not survive it.
    with multiprocessing.get_context("fork").Pool(_WORKERS) as pool:
        for kind, name, end, said, took in pool.imap_unordered(_work, range(len(_cases))):
            counts[kind, end] += 1
            if end in ends.BAD or os.environ.get("HOSTILE_VERBOSE"):
                print(f"{end}: {kind} {name} ({took:.1f} s)\n    {said.strip()[-1500:]}", flush=True)
    shutil.rmtree(root, ignore_errors=True)
    _print(counts)
    print(f"{datetime.date.today()}, {len(_cases)} cases, {(time.monotonic() - began) / 60:.0f} minutes")
    return int(any(counts[key] for key in counts if key[1] in ends.BAD))


def _print(counts):
    from tests.hostile.ends import ALL

    print(" | ".join(["kind".ljust(24), *ALL]))
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    for kind in [*kinds, "all"]:
        numbers = [sum(n for (k, e), n in counts.items() if kind in (k, "all") and e == end) for end in ALL]
        print(
            " | ".join([kind.ljust(24), *(str(n).rjust(len(e)) for n, e in zip(numbers, ALL, strict=True))])
        )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
