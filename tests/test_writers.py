"""Files that are written whole or not at all, by several processes at once, and in place of nothing else."""

import errno
import os
import pathlib
import socket
import stat
import subprocess
import sys

import pytest

from dropbn import plots, writers
from dropbn.errors import DropbnError
from dropbn.results import Result

WRITER = """
import sys
from dropbn import writers
path, letter, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
for i in range(times):
    writers.replace(path, letter * (1 + i * 997 % 40_000))
"""


def test_two_processes_write_one_file_and_a_third_reads_it(tmp_path):
    file, times = tmp_path / "report.json", 250
    file.write_text("a")
    command = [sys.executable, "-c", WRITER, str(file)]
    writing = [
        subprocess.Popen([*command, letter, str(times)], stderr=subprocess.PIPE, text=True) for letter in "ab"
    ]
    seen = set()
    while any(process.poll() is None for process in writing):
        text = file.read_text()
        # A text is of one letter, and its length is one of those that were written.
        assert len(set(text)) == 1 and (len(text) - 1) in {i * 997 % 40_000 for i in range(times)}
        seen.add(text)
    assert [process.communicate()[1] for process in writing] == ["", ""]
    assert {text[0] for text in seen} == {"a", "b"} and len(seen) > 20
    assert os.listdir(tmp_path) == ["report.json"]


def _write_all(directory):
    """A file of every kind; returns the names."""
    rows = [{"layer": "bn", "ratio": 0.5}]
    writers.replace(directory / "text.md", "σ² \udce4")
    writers.replace(directory / "bytes", b"\r\n")
    Result(rows).to_json(directory / "rows.json")
    Result(rows).to_csv(directory / "rows.csv")
    plots.shift({"run": rows}, directory / "shift.png")
    return ["text.md", "bytes", "rows.json", "rows.csv", "shift.png"]


def test_what_is_written(tmp_path):
    names = _write_all(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert (tmp_path / "text.md").read_bytes() == "σ² ?".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\r\n"
    assert (tmp_path / "rows.csv").read_text() == "layer,ratio\nbn,0.5\n"
    assert (tmp_path / "shift.png").read_bytes().startswith(b"\x89PNG")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "rows.csv").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_says_which(tmp_path, monkeypatch, moment):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in _write_all(tmp_path):
        (tmp_path / name).write_text("old")
    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif moment == "replace":
        monkeypatch.setattr(pathlib.Path, "replace", full)
    rows = Result([{"a": 1}])
    refused = pytest.raises(DropbnError, match=r"Cannot write to .*/rows\.csv: No space left on device\.")
    if moment == "write":
        with refused, writers.replacing(tmp_path / "rows.csv") as file:
            file.write(b"new")
            full()
    else:
        with refused:
            rows.to_csv(tmp_path / "rows.csv")
        with pytest.raises(DropbnError, match=r"/shift\.png: No space"):
            plots.shift({"run": [{"ratio": 1.0}]}, tmp_path / "shift.png")
    assert {file.read_text() for file in tmp_path.iterdir()} == {"old"}


def test_an_exception_of_the_writer_is_its_own(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), writers.replacing(tmp_path / "x") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "directory", "symbolic link"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path, listening = tmp_path / "out.csv", socket.socket(socket.AF_UNIX)
    with listening:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listening.bind(str(path))
        elif kind == "directory":
            path.mkdir()
        elif kind == "symbolic link":
            (tmp_path / "secret").write_text("old")
            path.symlink_to("secret")
        else:
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("making a device needs root")
        before = path.lstat()
        with pytest.raises(DropbnError, match=rf"Cannot write to .*/out\.csv: it is a.* {kind}"):
            Result([{"a": 1}]).to_csv(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not list(tmp_path.glob(f".*{writers.SUFFIX}"))


def test_a_directory_in_whose_place_a_file_is(tmp_path):
    assert writers.make_directory(tmp_path / "a" / "b").is_dir()
    writers.make_directory(tmp_path / "a")
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "b", "Not a directory")):
        with pytest.raises(DropbnError, match=f"Cannot make the directory {path}: {reason}"):
            writers.make_directory(path)


def test_a_directory_of_a_workdir_is_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "eval").symlink_to("elsewhere")
    with pytest.raises(DropbnError, match=r"Cannot write to .*/eval: it is a symbolic link"):
        writers.make_part(tmp_path, "eval")
    assert writers.make_part(tmp_path, "figures").is_dir()
