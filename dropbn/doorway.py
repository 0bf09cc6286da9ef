"""What the commands share: flags, settings of the process, errors as sentences."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence

import absl.logging
import jax
from absl import app, flags

from dropbn.errors import DropbnError

# A process that has been silent for so long is taken for dead, and the others end.
_HEARTBEAT_SECONDS = 30


def run(
    main: Callable[..., int | None], *, arguments: Sequence[str] = (), failure: int = 1, interrupted: str = ""
) -> None:
    """Parses flags and calls `main`; what the user got wrong ends in a sentence, not a traceback.

    Args:
      main: called with the positional arguments; returns the exit status.
      arguments: what those are, for the sentence about a missing one.
      failure: exit status after a `DropbnError`.
      interrupted: what to say after Ctrl-C.
    """
    absl.logging.set_verbosity(absl.logging.ERROR)
    # Before anything is drawn: on CPU this form of threefry draws dropout masks 2 to 3 times faster and
    # compiles several times faster. Every draw depends on it, so it is fixed once for all runs.
    jax.config.update("jax_threefry_partitionable", False)

    def guarded(argv):
        _connect()
        given = argv[1:]
        if given[len(arguments) :]:
            unexpected = given[len(arguments)]
            _exit(f"unexpected argument {unexpected!r}; flags begin with -- and take their value after =", 2)
        if len(given) < len(arguments):
            _exit(f"give {arguments[len(given)]}", 2)
        try:
            status = main(*given)
        except DropbnError as error:
            _exit(str(error), failure)
        except KeyboardInterrupt:
            _exit(f"interrupted{interrupted and '; '}{interrupted}", 130)
        sys.exit(status)

    app.run(guarded, flags_parser=_parse)


def define_processes() -> None:
    """Defines the flags of commands that run as several processes, one for each host."""
    flags.DEFINE_bool(
        "distributed", False, "One process of several, as TPU pod, SLURM, Open MPI or Kubernetes say."
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where nothing else says it.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


def _connect():
    """Joins the other processes, where the flags say that there are some; only process 0 prints."""
    given = flags.FLAGS
    if "distributed" not in given:
        return
    if not (given.distributed or given.coordinator_address):
        if given.num_processes is not None or given.process_id is not None:
            _exit("give --coordinator_address=host:port of process 0 too, or --distributed alone", 2)
        return
    try:
        jax.distributed.initialize(
            given.coordinator_address,
            given.num_processes,
            given.process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        _exit(f"cannot join the other processes: {str(error).splitlines()[0]}", 2)
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


@contextlib.contextmanager
def parsing():
    """Turns errors of defining and parsing flags into a sentence.

    A config flag with a default needs it around its definition, where it already reads the overrides.
    """
    try:
        yield
    except OSError as error:
        _exit(f"cannot load the config: {str(error).strip().splitlines()[-1].strip()}", 2)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # What get_config itself refused reaches us wrapped in its traceback.
        cause = error
        while cause is not None:
            if isinstance(cause, DropbnError) and "Traceback" not in str(cause):
                _exit(str(cause), 2)
            cause = cause.__cause__ or cause.__context__
        # For a key that a config lacks, ml_collections raises an AttributeError or KeyError whose text is
        # the key, quoted once or twice, and on a second line the nearest one.
        text = str(error.args[0] if error.args else error)
        plain = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
        key = re.match(r"(\w+)'?(?:\n(.*))?$", plain)
        _exit(f"the config has no field '{key[1]}'. {key[2] or ''}".strip() if key else text, 2)


def _parse(argv):
    with parsing():
        argv = flags.FLAGS(argv)
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, str):
            flags.FLAGS.config.lock()  # Raises what loading the file raised.
        return argv


def _exit(message, status):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
