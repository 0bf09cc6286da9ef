"""`dropbn study` from the command line: what it chooses, refuses and estimates; how it resumes if killed."""

import errno
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from small_members import TINY, members_of

from dropbn.errors import DropbnError
from dropbn.study import command, work_items
from dropbn.train import workdir

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ("", 3),
        ("cifar10", 2),
        ("net,cifar10", 2),
        ("place=P1", 1),
        ("place=P1,cifar10", 1),
        ("*cifar10*", 3),
        ("*P[01]", 1),
        ("P", 0),
    ],
)
def test_only(only, chosen):
    cells = ["net,cifar10", "net,cifar10,place=P1", "net,cifar100"]
    assert sum(command._is_chosen(cell, only) for cell in cells) == chosen


def _command(directory, *flags):
    words = [
        "-m",
        "dropbn",
        "study",
        "--config=configs/small.py:digits",
        f"--workdir={directory}",
        "--seeds=3",
    ]
    return [sys.executable, *words, "--only=place=P4", *TINY, "--config.duration=6 epochs", *flags]


def _table(directory):
    found = json.loads((directory / "table.json").read_text())
    return {key: value for key, value in found.items() if key != "date"}


def _killed_until_done(directory, times, rng):
    """Runs a study, killing it `times` times at random moments; returns what it printed at last."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    launch = functools.partial(
        subprocess.Popen, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    kills = 0
    while True:
        process = launch(_command(directory))
        if kills < times:
            lines = _lines(directory) + rng.randint(0, 8)
            while process.poll() is None and _lines(directory) < lines:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            kills += 1
        output = process.communicate()[0].decode()
        if process.returncode == 0:
            return output
        assert process.returncode == -signal.SIGKILL, output


def _lines(directory):
    """The number of records that all members have written."""
    return sum(file.read_text().count("\n") for file in directory.glob("members/*/*/metrics.jsonl"))


@pytest.mark.slow  # By default test_faults.py kills one run, and members are runs.
@pytest.mark.parametrize("kills", [1, 10])
def test_a_killed_study_ends_with_the_same_table(tmp_path, kills):
    rng = random.Random(kills)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _killed_until_done(whole, 0, rng)
    _killed_until_done(cut, kills, rng)
    wanted, found = _table(whole), _table(cut)
    assert found == wanted
    [row] = [row for row in wanted["rows"] if row["seeds"]]
    assert (row["cell"], row["seeds"]) == ("preresnet8,digits,place=P4", 3) and row["value"] > 30
    assert wanted["unfinished"] == 16 * 3  # The table's other cells.
    for seed in range(3):
        one, other = (
            workdir.read_metrics(directory / f"members/preresnet8-digits-place=P4/seed{seed}")
            for directory in (whole, cut)
        )
        assert [record["train/loss"] for record in one] == [record["train/loss"] for record in other]
    todo, refused = work_items.create(members_of(whole, seeds=3, overrides=["--config.duration=6 epochs"]))
    assert not todo and not refused  # No finished member is trained again.


MISTAKES = {
    "no table": ("--config=configs/kim2023.py", "Say which table"),
    "override": ("--config=configs/small.py:digits --config.modle.depth=8", "no field 'modle'"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_a_sentence(flags, message, tmp_path):
    command = [sys.executable, "-m", "dropbn", "study", f"--workdir={tmp_path}/w", *flags.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_dry_run_trains_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dropbn",
        "study",
        f"--workdir={tmp_path}/w",
        "--dry_run",
        "--quick",
    ]
    done = subprocess.run(
        [*command, "--config=configs/small.py:digits", "--seeds=2", "--only=*P[0-3]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "8 members, 8 to be trained" in done.stdout and "place=P3" in done.stdout
    assert not (tmp_path / "w").exists()


@pytest.fixture
def collecting(tmp_path, monkeypatch):
    """What collects the published study of digits in a directory."""
    for name in ("members.csv", "correct.csv"):
        shutil.copy(ROOT / "docs" / "results" / "digits" / name, tmp_path)
    given = {"config": "configs/small.py:digits", "workdir": str(tmp_path), "seeds": 1, "only": "place=P4"}
    given |= {"quick": False, "dry_run": False, "collect": True, "parallel": "members"}
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**given))
    monkeypatch.setattr(command, "flags", flags)
    monkeypatch.chdir(ROOT)
    return tmp_path


def test_a_file_in_the_place_of_the_figures_costs_no_number(collecting, capsys):
    (collecting / "figures").write_text("notes")
    with pytest.raises(DropbnError, match=r"directory .*/figures: File exists\. No member is lost: once"):
        command.main([])
    assert "P5 above no dropout" in capsys.readouterr().out
    published = ROOT / "docs" / "results" / "digits" / "table.csv"
    assert (collecting / "table.csv").read_text() == published.read_text()
    assert (collecting / "figures").read_text() == "notes"


def test_a_full_disk_costs_no_member_and_the_table_is_printed(collecting, capsys, monkeypatch):
    before = {file.name: file.read_bytes() for file in collecting.iterdir()}
    written, sync = [], os.fsync

    def filling(file):
        """There is room for members.csv and correct.csv, and for half of what follows."""
        written.append(file)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(DropbnError, match=r"table\.json: No space left on device\. No member is lost: once"):
        command.main([])
    assert "P5 above no dropout" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in collecting.iterdir()} == before
    monkeypatch.setattr(os, "fsync", sync)
    assert command.main([]) == 0 and "Written to " in capsys.readouterr().out


def test_collecting_published_members_gives_the_published_table(tmp_path):
    """Numbers and words are equal up to the figures, which need the runs themselves."""
    results = ROOT / "docs" / "results" / "digits"
    for name in ("members.csv", "correct.csv"):
        shutil.copy(results / name, tmp_path)
    words = [
        "-m",
        "dropbn",
        "study",
        "--config=configs/small.py:digits",
        f"--workdir={tmp_path}",
        "--collect",
    ]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "P5 above no dropout" in done.stdout and "Written to " in done.stdout
    for name in ("members.csv", "correct.csv", "table.csv"):
        assert (tmp_path / name).read_text() == (results / name).read_text()
    published = (results / "table.md").read_text()
    assert (tmp_path / "table.md").read_text().rstrip() == published.partition("\n![")[0].rstrip()
