"""Commands, each in a process of its own that is forked from one in which everything is imported."""

import atexit
import contextlib
import importlib
import os
import pathlib
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.hostile import ends

ROOT = pathlib.Path(__file__).parents[2]
_PRELOADED = (
    "dropbn.train.loop",
    "dropbn.train.evaluation",
    "dropbn.train.console",
    "dropbn.train.measurements",
    "dropbn.study.figures",
    "dropbn.study.table",
    "dropbn.study.training",
    "dropbn.page",
    "dropbn.diagnose.lint.report",
    "dropbn.plots",
    "matplotlib.backends.backend_agg",
    "tensorflow_datasets",
    "array_record.python.array_record_module",
    "tensorboardX.event_file_writer",
    "sklearn.datasets",
    "importlib.readers",  # Whoever runs without permissions may not read Python itself.
)
_SECONDS = 300  # after which a command hangs, also on a busy machine


class Ended(NamedTuple):
    """A command that has ended: its words, its status (negative for a signal), and what it printed."""

    words: Sequence[str]
    status: int
    output: str
    errors: str
    hung: bool


class Started:
    """A command that is running: `words` are a script of the repository, or dropbn, with its arguments."""

    def __init__(
        self,
        words: Sequence[str],
        directory: pathlib.Path,
        before: Callable[[], None] = lambda: None,
        **environment: str,
    ) -> None:
        self.words = list(map(str, words))
        number = len(list(directory.glob("printed-*")))
        self._printed = [directory / f"printed-{number}-{name}" for name in ("out", "err")]
        for file in self._printed:
            file.touch()
        self.process = os.fork()
        if not self.process:
            _become(self.words, directory, self._printed, before, environment)

    def poll(self) -> bool:
        """Whether it is still running."""
        if not hasattr(self, "_status"):
            found, status = os.waitpid(self.process, os.WNOHANG)
            if not found:
                return True
            self._status = os.waitstatus_to_exitcode(status)
        return False

    def send(self, number: int) -> None:
        """Sends it a signal."""
        if self.poll():
            os.kill(self.process, number)

    def end(self, seconds: float = _SECONDS) -> Ended:
        """Waits for its end; kills it when the seconds are over."""
        deadline, hung = time.monotonic() + seconds, False
        while self.poll():
            if time.monotonic() > deadline:
                hung = True
                self.send(signal.SIGKILL)
            time.sleep(0.01)
        output, errors = (file.read_text(errors="replace") for file in self._printed)
        return Ended(self.words, self._status, output, errors, hung)


def preload() -> None:
    """Imports what commands import, so that each starts in a moment."""
    sys.path.insert(0, str(ROOT))
    for name in _PRELOADED:
        importlib.import_module(name)


def run(words: Sequence[str], directory: pathlib.Path, *args, **kwargs) -> Ended:
    """Runs a command to its end."""
    return Started(words, directory, *args, **kwargs).end()


def case(kind, name, words, may="either", prepare=lambda directory: None, **options) -> ends.Case:
    """A case of one command; {} in its words is its directory, which `prepare` fills."""

    def go(directory):
        prepare(directory)
        return ends.judge(
            run([word.replace("{}", str(directory)) for word in words], directory, **options), may
        )

    return ends.Case(kind, name, go)


def _become(words, directory, printed, before, environment):
    """Turns this forked process into the command, in its directory with configs beside it; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for number, file in enumerate(printed, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.environ |= environment
        os.chdir(directory)
        with contextlib.suppress(FileExistsError):
            (directory / "configs").symlink_to(ROOT / "configs")
        sys.argv, sys.orig_argv = words, ["python", *words]
        atexit._clear()
        before()
        if words[0] == "dropbn":
            runpy.run_module("dropbn", run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    # What Python does at its end.
    with contextlib.suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
