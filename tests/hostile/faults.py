"""Bad days: full disks, missing permissions, two commands at once, lost processes, poor surroundings."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time

from tests.hostile import made, struck
from tests.hostile.doors import Started, case, run
from tests.hostile.ends import ACCEPTED, HANG, HOLE, SENTENCE, TRACEBACK, Case, judge

_NOBODY = 65534


def cases() -> list[Case]:
    """All cases of this file."""
    return [*_no_room(), *_no_permission(), *_two_at_once(), *_several(), *_poor()]


# No room on the disk.


def _no_room():
    commands = {"train": (), "eval": (), "report": (), "collect": ()}
    for name in commands:
        for size in (1_000, 3_000, 30_000, 200_000):

            def before(size=size):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

            def go(directory, name=name, before=before):
                files = struck.before_and_after(name, directory)
                # What it prints goes into files, too, so they have room for its sentence.
                ended = run(
                    struck.words_of(name, directory), directory, before, JAX_ENABLE_COMPILATION_CACHE="0"
                )
                end, said = judge(ended)
                torn = struck.torn(files)
                return (HOLE, f"neither old nor new: {torn}") if torn else (end, said)

            yield Case("no room", f"{name}: files of at most {size} bytes", go)
        for size in ("64k", "300k"):
            if os.geteuid() == 0 and shutil.which("mount"):
                yield Case("no room", f"{name}: a disk of {size}", _small_disk(name, size))


def _small_disk(name, size):
    def go(directory):
        disk = directory / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True
        )
        if mounted.returncode:
            return ACCEPTED, "this system mounts nothing"
        try:
            files = struck.before_and_after(name, disk)
            free = int(size[:-1]) * 1024
            room = os.statvfs(disk)
            (disk / "filler").write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
            end, said = judge(run(struck.words_of(name, disk), directory))
            torn = struck.torn(files)
            if torn or end not in (SENTENCE, ACCEPTED):
                return (HOLE, f"neither old nor new: {torn}") if torn else (end, said)
            (disk / "filler").unlink()
            again = judge(run(struck.words_of(name, disk), directory), "pass")
            return (end, said) if again[0] == ACCEPTED else again
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)

    return go


# No permission: as a user who owns nothing of it.


def _no_permission():
    if os.geteuid():
        return

    def before():
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        os.environ["HOME"] = "/nonexistent"

    places = {
        "train": ["", "w"],
        "eval": [
            "run",
            "run/config.json",
            "run/checkpoints",
            "run/checkpoints/44",
            "run/eval",
            "run/eval/shift.csv",
        ],
        "report": ["run", "run/config.json", "run/metrics.jsonl", "run/eval/report.json", "run/report.html"],
        "collect": ["study", "study/table.json", "study/members.csv", "study/figures", "study/members"],
    }
    for name, paths in places.items():
        for path in paths:
            for mode in (0o000, 0o555):

                def go(directory, name=name, path=path, mode=mode):
                    if name == "train":
                        made.copy("run", directory).rename(directory / "w")
                    else:
                        struck.before_and_after(name, directory)
                    subprocess.run(["chown", "-R", str(_NOBODY), directory], check=True)
                    printed = run(["dropbn"], directory)  # Makes the files to print into, and the links.
                    (directory / path).chmod(mode)
                    directory.chmod(mode if not path else 0o755)
                    try:
                        return judge(_as_nobody(name, directory, before))
                    finally:
                        directory.chmod(0o755)
                        del printed

                yield Case("no permission", f"{name}: {path or '.'} {mode:o}", go)


def _as_nobody(name, directory, before):
    printed = directory.parent / f"{directory.name}-printed"
    printed.mkdir()
    try:
        return run(struck.words_of(name, directory), printed, before, JAX_ENABLE_COMPILATION_CACHE="0")
    finally:
        shutil.rmtree(printed)


# Two at once.


def _two_at_once():
    pairs = [
        ("train", "train"),
        ("eval", "eval"),
        ("report", "report"),
        ("collect", "collect"),
        ("study", "study"),
    ]
    pairs += [("eval", "report"), ("collect", "collect")]
    for i, (one, other) in enumerate(pairs * 2):
        yield Case("two at once", f"{one} and {other} #{i}", _together(one, other, i))


def _together(one, other, index):
    def go(directory):
        files = {}
        for name in {one, other}:
            files |= struck.before_and_after(name, directory) if not (directory / "run").exists() else {}
        started = [Started(struck.words_of(one, directory), directory)]
        time.sleep(random.Random(index).uniform(0, 0.3))
        started.append(Started(struck.words_of(other, directory), directory))
        judged = [judge(each.end()) for each in started]
        for end, said in judged:
            if end not in (SENTENCE, ACCEPTED):
                return end, said
        if all(end == SENTENCE for end, _ in judged):
            return HOLE, f"neither was done: {judged}"
        wrong = [
            str(file) for file, (_, new, _) in files.items() if one == other and struck.plain(file) != new
        ]
        if one == "train" and struck.records(directory / "w") != struck.records(made.root() / "run"):
            wrong.append("metrics.jsonl")
        return (HOLE, f"another end: {wrong}") if wrong else max(judged)

    return go


# Several processes, on this machine.


def _several():
    def lone(name, *flags, before=None):
        words = [*struck.words_of("train", "{}"), *flags]
        return case("several processes", name, words, "fail")

    def port():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    at = f"--coordinator_address=127.0.0.1:{port()}"
    yield lone("process 1 alone", at, "--num_processes=2", "--process_id=1", "--wait=2")
    yield lone(
        "process 0 alone",
        f"--coordinator_address=127.0.0.1:{port()}",
        "--num_processes=2",
        "--process_id=0",
        "--wait=2",
    )
    yield lone("--distributed without addresses", "--distributed")
    yield lone("--distributed and a number", "--distributed", "--num_processes=2", "--process_id=0")
    yield lone("an address without numbers", at)

    def taken(directory):
        with socket.create_server(("127.0.0.1", 0)) as server:
            place = f"--coordinator_address=127.0.0.1:{server.getsockname()[1]}"
            words = [
                *struck.words_of("train", directory),
                place,
                "--num_processes=2",
                "--process_id=0",
                "--wait=2",
            ]
            return judge(run(words, directory), "fail")

    yield Case("several processes", "a port in use", taken)

    def pair(title, more, lose=None):
        def go(directory):
            flags = [f"--coordinator_address=127.0.0.1:{port()}", "--num_processes=2", "--wait=20"]
            words = [*struck.words_of("train", directory), "--config.batch_size=64", *flags]
            both = [Started([*words, f"--process_id={i}", *more[i]], directory) for i in range(2)]
            if lose is not None:
                time.sleep(lose)
                both[1].send(signal.SIGKILL)
            ends = [each.end(90) for each in both]
            judged = [judge(each) for each in (ends[:1] if lose is not None else ends)]
            worst = [one for one in judged if one[0] in (TRACEBACK, HANG, HOLE)]
            return worst[0] if worst else judged[0]

        return Case("several processes", title, go)

    yield pair("another seed", ([], ["--config.seed=5"]))
    yield pair("another workdir", ([], ["--workdir=elsewhere"]))
    yield pair("another flag", ([], ["--checkpoint_dir=elsewhere"]))
    yield pair("the same number", ([], ["--process_id=0", "--wait=3"]))
    for seconds in (0.5, 2.0, 4.0, 7.0):
        yield pair(f"one is killed after {seconds} s", ([], []), seconds)


# Poor surroundings.


def _poor():
    def limited(kind, most):
        return lambda: resource.setrlimit(kind, (most, most))

    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    surroundings = {
        "standard output is full": full,
        "standard output is closed": lambda: os.close(1),
        "20 open files": limited(resource.RLIMIT_NOFILE, 20),
        "no home": lambda: os.environ.update(HOME="/nonexistent", XDG_CACHE_HOME=""),
        "a home that is a file": lambda: os.environ.update(HOME="/dev/null"),
        "no directory for temporary files": lambda: os.environ.update(TMPDIR="/nonexistent"),
        "a language without letters": lambda: os.environ.update(LC_ALL="C", PYTHONIOENCODING="ascii"),
        "an unknown platform": lambda: os.environ.update(JAX_PLATFORMS="abacus"),
    }
    for what, before in surroundings.items():
        for name in ("train", "eval", "report", "collect"):

            def go(directory, name=name, before=before):
                struck.before_and_after(name, directory)
                return judge(run(struck.words_of(name, directory), directory, before))

            yield Case("poor surroundings", f"{name}: {what}", go)
