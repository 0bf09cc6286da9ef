"""Where several processes meet before JAX joins them, and notice afterwards that one is lost.

JAX neither says whom it waits for nor ends in a sentence. So process 0 listens at the coordinator's port
first, the others tell it who they are, and it lets all of them go on at once. The connections stay: one that
ends without a word is a process that has died.
"""

import contextlib
import dataclasses
import json
import os
import re
import selectors
import socket
import sys
import threading
import time
from typing import Any

from dropbn.errors import DropbnError, shown

_REPORT_SECONDS, _RETRY_SECONDS, _REPLY_SECONDS = 10.0, 0.3, 5.0
_MOST_BYTES = 1000  # of a message: whoever sends more is not one of us
_GRACE_SECONDS = 2.0  # in which a process may say itself why it ends
_watched: dict[str, socket.socket] = {}
_left, _ended = set[str](), set[str]()  # those that said goodbye, those whose connection has ended
_failing = threading.Event()


class NotAll(DropbnError):
    """The other processes did not come in time."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where process 0 listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def of(cls, text: str) -> "Place":
        """The place that host:port says, with an IPv6 address in brackets; raises if it says none."""
        found = re.fullmatch(r"\[([\da-fA-F:.]+)\]:(\d{1,5})|([^\s:\[\]/]+):(\d{1,5})", text)
        host, port = (found[1] or found[3], int(found[2] or found[4])) if found else ("", 0)
        if not 0 < port < 2**16:
            raise DropbnError(
                f"--coordinator_address={shown(text)}: give host:port of process 0, such as 10.0.0.1:9911"
            )
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise DropbnError(
                f"--coordinator_address={shown(text)}: the host is not known ({error})"
            ) from error
        return cls(host, port)


def listen(place: Place, number: int, seconds: float) -> None:
    """Process 0: waits until the others have called, then lets all of them go on.

    Args:
      place: where it listens; on all of its addresses, as JAX will.
      number: how many processes there are, with this one.
      seconds: how long it waits.

    Raises:
      DropbnError: it cannot listen there.
      NotAll: some did not call in time.
    """
    waiting, here = _Waiting(place, number, seconds), dict[int, socket.socket]()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(place))
        chosen = stack.enter_context(selectors.DefaultSelector())
        chosen.register(server, selectors.EVENT_READ)
        while len(here) < number - 1:
            waiting.check(number - 1 - len(here))
            for key, _ in chosen.select(_RETRY_SECONDS):
                if key.data is None:
                    caller, _ = server.accept()
                    if (process := _welcome(caller, number, here)) is not None:
                        here[process] = caller
                        chosen.register(caller, selectors.EVENT_READ, process)
                else:  # It says nothing more, so it has gone.
                    chosen.unregister(key.fileobj)
                    here.pop(key.data).close()
                for caller in here.values():
                    _send(caller, missing=number - 1 - len(here))
    for caller in here.values():  # The port is free now.
        _send(caller, go=True)
    _watch({f"process {process}": caller for process, caller in here.items()})


def call(place: Place, number: int, index: int, seconds: float) -> None:
    """The other processes: tell process 0 who they are, and go on when it says so; `index` is their number.

    Raises:
      DropbnError: process 0 expects other processes.
      NotAll: process 0 or others did not come in time.
    """
    waiting = _Waiting(place, number, seconds)
    while True:
        with contextlib.suppress(OSError):
            to = socket.create_connection((place.host, place.port), timeout=_REPLY_SECONDS)
            _send(to, process=index, of=number)
            to.settimeout(_RETRY_SECONDS)
            missing = None
            while (answer := _receive(to)) != {}:  # the end of the connection
                if answer is None:
                    waiting.check(missing)
                elif "missing" in answer:
                    missing = answer["missing"]
                elif "refused" in answer:
                    refused = shown(str(answer["refused"]))
                    raise DropbnError(f"process 0 at {place} refuses this process: {refused}")
                else:
                    return _watch({"process 0": to})
            to.close()
        waiting.check(None)
        time.sleep(_RETRY_SECONDS)


class _Waiting:
    """Says every ten seconds whom a process waits for, and gives up in the end."""

    def __init__(self, place, number, seconds):
        self._place, self._number, self._seconds = place, number, seconds
        self._started = self._said = time.monotonic()

    def check(self, missing):
        now = time.monotonic()
        whom = "process 0" if missing is None else f"{missing} of {self._number} processes"
        if now - self._started > self._seconds:
            raise NotAll(
                f"waited {self._seconds:g} s (--wait) for {whom} at {self._place}: start all with the same "
                "--coordinator_address and --num_processes, each with its own --process_id"
            )
        if now - self._said > _REPORT_SECONDS:
            print(f"waiting for {whom} at {self._place}", file=sys.stderr, flush=True)
            self._said = now


def _server(place):
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", place.port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise DropbnError(
            f"cannot listen at port {place.port} of --coordinator_address={place}: "
            f"{os.strerror(error.errno or 0)}; choose another port for all processes"
        ) from error


def _welcome(caller, number, here):
    """The number of a process that has called; None, and it is told, where it cannot be one of ours."""
    caller.settimeout(_REPLY_SECONDS)
    said = _receive(caller) or {}
    process, of = said.get("process"), said.get("of")
    if not (isinstance(process, int) and isinstance(of, int)):
        caller.close()
        return None
    if of != number:
        _send(caller, refused=f"it was started for {number} processes, this one for {of}")
    elif process in here or not 0 < process < number:
        _send(caller, refused=f"there is another process {process}")
    else:
        return process
    caller.close()
    return None


def _send(to, **message):
    with contextlib.suppress(OSError):
        to.sendall(json.dumps(message).encode() + b"\n")


def _receive(origin: socket.socket) -> dict[str, Any] | None:
    """A message; {} at the end of the connection or for what is none; None if none comes in time."""
    found = b""
    try:
        while not found.endswith(b"\n") and len(found) < _MOST_BYTES:
            part = origin.recv(1)  # not the beginning of the next message
            if not part:
                return {}
            found += part
        message = json.loads(found)
    except TimeoutError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def leave() -> None:
    """Tells the other processes that this one ends as it should."""
    for to in _watched.values():
        _send(to, bye=True)


def fail(why: str) -> None:
    """Tells the other processes why this one fails. Process 0 ends last: JAX aborts the others then."""
    others = dict(_watched)
    for to in others.values():
        _send(to, failed=why)
    deadline = time.monotonic() + 2 * _GRACE_SECONDS
    while "process 0" not in others and len(_ended) < len(others) and time.monotonic() < deadline:
        time.sleep(_RETRY_SECONDS)


def _watch(others):
    """Ends this process soon after another has failed or died."""
    _watched.update(others)
    for to in others.values():
        to.settimeout(None)
    threading.Thread(target=_end_with_others, args=(others,), daemon=True).start()


def _end_with_others(others):
    with selectors.DefaultSelector() as chosen:
        for name, to in others.items():
            chosen.register(to, selectors.EVENT_READ, name)
        while chosen.get_map():
            for key, _ in chosen.select():
                said = _receive(others[key.data]) or {}
                if said == {}:
                    chosen.unregister(key.fileobj)
                    _ended.add(key.data)
                if "bye" in said:
                    _left.add(key.data)
                elif key.data not in _left and not _failing.is_set():
                    _failing.set()
                    why = (
                        f"{key.data} failed: {said['failed']}"
                        if "failed" in said
                        else f"lost {key.data}: it died"
                    )
                    threading.Thread(target=_end, args=(why, bool(said)), daemon=True).start()


def _end(why, was_told):
    if was_told:
        time.sleep(_GRACE_SECONDS)  # Mostly the others fail for the same reason, and say so.
    print(f"error: {shown(why)}; run the command again on all", file=sys.stderr, flush=True)
    fail(why)
    os._exit(1)
