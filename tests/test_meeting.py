"""Several processes meet, agree, and notice when one is lost: real processes on the loopback interface."""

import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from dropbn import meeting, processes
from dropbn.errors import DropbnError

ROOT = pathlib.Path(__file__).parent.parent
# A command without training: it joins the others, looks at the workdir and sleeps.
COMMAND = """
import os, sys, time
from absl import flags
from dropbn import cli, processes
sys.argv[0] = __name__ = "command"
flags.DEFINE_string("colour", "red", "", module_name="command")
flags.DEFINE_string("workdir", None, "", module_name="command")
flags.DEFINE_float("sleep", 0, "", module_name="command")
processes.define()
def main():
    if flags.FLAGS.workdir:
        from dropbn.train import parallel
        os.makedirs(flags.FLAGS.workdir, exist_ok=True)
        parallel.share(flags.FLAGS.workdir)
    print("met", file=sys.stderr, flush=True)
    time.sleep(flags.FLAGS.sleep)
cli.run(main)
"""


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(port, number, index, *flags, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    flags = (f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={number}", *flags)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *flags, f"--process_id={index}"], **pipes | options
    )


def _ended(*started):
    """(status, errors) of every process."""
    found = []
    for process in started:
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        found.append((process.returncode, errors))
    return found


def test_processes_that_were_started_otherwise_are_told_what_differs():
    port = _port()
    for status, errors in _ended(_start(port, 2, 0), _start(port, 2, 1, "--colour=blue", "--wait=200")):
        assert status == 2, errors
        assert errors == (
            "error: the processes were not started alike\n"
            "  --colour: 'red' in process 0; 'blue' in process 1\n"
        )


def test_a_process_that_is_lost_is_called_so(tmp_path):
    port = _port()
    started = [_start(port, 2, i, "--sleep=60", f"--workdir={tmp_path}") for i in range(2)]
    assert [process.stderr.readline() for process in started] == ["met\n"] * 2
    assert list(tmp_path.iterdir()) == []
    began = time.monotonic()
    started[1].kill()
    (status, errors), _ = _ended(*started)
    assert (status, errors) == (1, "error: lost process 1: it died; run the command again on all\n")
    assert time.monotonic() - began < 15


@pytest.mark.slow
def test_processes_that_meet_end_well(tmp_path):
    port = _port()
    found = _ended(*(_start(port, 3, i, f"--workdir={tmp_path}") for i in range(3)))
    assert found == [(0, "met\n")] * 3


@pytest.mark.slow
def test_workdirs_of_several_machines_are_told_apart(tmp_path):
    port = _port()
    places = [tmp_path / "here", tmp_path / "there"]
    started = []
    for i, place in enumerate(places):
        place.mkdir()
        environment = {"PYTHONPATH": str(ROOT)}
        started.append(_start(port, 2, i, "--workdir=run", cwd=place, env=environment))
    for status, errors in _ended(*started):
        assert status == 1, errors
        assert "error: the processes do not see the same workdir\n" in errors
        assert "run is: that of process 0 in process 0; another one, on " in errors
    assert [list((place / "run").iterdir()) for place in places] == [[], []]


def test_a_port_in_use_is_refused():
    with (
        socket.create_server(("127.0.0.1", 0)) as used,
        pytest.raises(DropbnError, match="Address already in use"),
    ):
        meeting.listen(meeting.Place("127.0.0.1", used.getsockname()[1]), 2, 5)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":9911", "host:0", "host:65536", "a b:9911", "x" * 5000, "1:2:3"]
)
def test_what_is_no_host_and_port_is_refused(text):
    with pytest.raises(DropbnError, match=r"give host:port|host is not known") as error:
        meeting.Place.of(text)
    assert len(str(error.value)) < 500


def test_hosts_and_ports_are_read():
    assert meeting.Place.of("127.0.0.1:9911") == meeting.Place("127.0.0.1", 9911)
    assert meeting.Place.of("[::1]:80") == meeting.Place("::1", 80)
    with pytest.raises(DropbnError, match="the host is not known"):
        meeting.Place.of("no-such-host.invalid:9911")


def test_who_does_not_come_is_waited_for_a_stated_time(monkeypatch, capsys):
    monkeypatch.setattr(meeting, "_REPORT_SECONDS", 0.5)
    place = meeting.Place("127.0.0.1", _port())
    with pytest.raises(meeting.NotAll, match=r"waited 1 s \(--wait\) for 2 of 3 processes at 127.0.0.1"):
        meeting.listen(place, 3, 1)
    assert f"waiting for 2 of 3 processes at {place}\n" in capsys.readouterr().err
    with pytest.raises(meeting.NotAll, match=r"waited 1 s \(--wait\) for process 0 at"):
        meeting.call(place, 3, 1, 1)
    assert f"waiting for process 0 at {place}\n" in capsys.readouterr().err


@pytest.fixture
def listening(monkeypatch):
    """Process 0 of three, and what it has come to: [], or the others that it has met."""
    met = []
    monkeypatch.setattr(meeting, "_watch", lambda others: met.append(others))
    place = meeting.Place("127.0.0.1", _port())
    thread = threading.Thread(target=meeting.listen, args=(place, 3, 20))
    thread.start()
    yield place, met, thread
    thread.join()
    for others in met:
        for to in others.values():
            to.close()


def test_strangers_and_doubles_are_not_counted(listening):
    place, met, thread = listening
    callers = [threading.Thread(target=meeting.call, args=(place, 3, 1, 20))]
    callers[0].start()
    time.sleep(0.5)
    for content in (b"GET / HTTP/1.1\r\n\r\n", b"{" * 5000, b'{"process": "1", "of": 3}\n', b"[1]\n", b""):
        with socket.create_connection((place.host, place.port)) as stranger:
            stranger.sendall(content)
    for index, number, message in (
        (1, 3, "there is another process 1"),
        (2, 4, "started for 3 processes"),
        (7, 3, "7"),
    ):
        with pytest.raises(DropbnError, match=message):
            meeting.call(place, number, index, 20)
    assert thread.is_alive() and not met
    callers.append(threading.Thread(target=meeting.call, args=(place, 3, 2, 20)))
    callers[1].start()
    for each in (*callers, thread):
        each.join(20)
    assert {name for others in met for name in others} == {"process 0", "process 1", "process 2"}


def test_a_process_that_gives_up_is_no_longer_counted(listening):
    place, met, thread = listening
    with pytest.raises(meeting.NotAll, match="for 1 of 3 processes"):
        meeting.call(place, 3, 1, 0.5)
    callers = [threading.Thread(target=meeting.call, args=(place, 3, i, 20)) for i in (1, 2)]
    for each in callers:
        each.start()
    for each in (*callers, thread):
        each.join(20)
    assert len(met) == 3


def test_only_what_differs_is_named():
    alike = {"--seed": "1", "jax": "0.10"}
    assert processes.differing([alike, alike], "unlike") == "agreed"
    told = processes.differing([alike, alike | {"--seed": "2"}, {"jax": "0.10"}], "unlike")
    assert told == "unlike\n  --seed: 1 in process 0; 2 in process 1; missing in process 2"
    many = {f"--f{i}": "1" for i in range(15)}
    assert processes.differing([many, {}], "unlike").endswith("and 5 more")
    assert (
        processes._short("x" * 1000) != processes._short("x" * 999)
        and len(processes._short("x" * 1000)) < 120
    )
