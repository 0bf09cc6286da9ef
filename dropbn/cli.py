"""What the commands share: flags, exit statuses, errors as sentences."""

import contextlib
import inspect
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

import absl.logging
import jax
from absl import app, flags

from dropbn import runtime
from dropbn.errors import DropbnError, Preempted, unknown

# A process that is silent for so long counts as dead, and the others end.
_HEARTBEAT_SECONDS = 30


def run(
    main: Callable[..., int | None], *, arguments: Sequence[str] = (), failure: int = 1, interrupted: str = ""
) -> None:
    """Parses flags and calls `main`. A user's mistake ends in a sentence, not in a traceback.

    With --help it prints how the command is used instead, see `answer_help`.

    Args:
      main: called with the positional arguments; returns the exit status.
      arguments: what the positional arguments are, for the sentence about a missing one.
      failure: exit status after a `DropbnError`.
      interrupted: what to say after Ctrl-C.
    """
    answer_help(inspect.getdoc(inspect.getmodule(main)) or "", *arguments)
    absl.logging.set_verbosity(absl.logging.FATAL)  # Errors are raised, and said once.
    runtime.prepare()

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
        except Preempted as stop:
            print(f"{stop.message}; resume with\n  {shlex.join(sys.orig_argv)}", flush=True)
            raise
        except jax.errors.JaxRuntimeError as error:
            if not jax.distributed.is_initialized():
                raise
            lost = str(error).splitlines()[0]
            _exit(f"lost another process ({lost}); {interrupted or 'run the command again on all'}", failure)
        except KeyboardInterrupt:
            _exit(f"interrupted{interrupted and '; '}{interrupted}", 130)
        sys.exit(status)

    app.run(guarded, flags_parser=_parse)


def answer_help(about: str, *arguments: str) -> None:
    """If the command line asks for help, prints usage and flags and exits with status 0; else does nothing.

    Args:
      about: the docstring of the command's module, of which the first two paragraphs are printed: what the
        command does, and examples.
      *arguments: the positional arguments of the command.
    """
    if not {"--help", "-h"} & {*sys.argv[1:]}:
        return
    # absl's own help exits with 1 and leaves out the flags of a command that is not the main module.
    modules = flags.FLAGS.flags_by_module_dict().items()
    given = [flag for name, found in modules if name.startswith(("dropbn.", sys.argv[0])) for flag in found]
    usage = ["usage:", sys.argv[0], *["[--flag=value ...]"] * bool(given), *arguments]
    paragraphs = [" ".join(usage), *about.strip().split("\n\n")[:2]]
    if given:
        paragraphs.append("\n".join(["flags:", *map(_describe, given)]))
    print("\n\n".join(paragraphs))
    sys.exit(0)


def _describe(flag):
    """A flag with its help and its default, as lines of a usage text."""
    default = f" (default: {flag.default})" if flag.default and not flag.boolean else ""
    about = " ".join(flag.help.split()).replace(".;", ";")  # absl joins its own words by a semicolon.
    return textwrap.fill(f"  --{flag.name}: {about}{default}", 100, subsequent_indent=" " * 6)


def define_processes() -> None:
    """Defines the flags of commands that can run as several processes, one for each host."""
    flags.DEFINE_bool(
        "distributed", False, "One process of several, as TPU pod, SLURM, Open MPI or Kubernetes say."
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where nothing else says it.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


def _connect():
    """Joins the other processes, if the flags say that there are some. Only process 0 prints."""
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
def parsing() -> Iterator[None]:
    """Turns errors in defining and parsing flags into a sentence.

    A config flag with a default needs it around its definition, because that already reads the overrides.
    """
    try:
        yield
    except OSError as error:
        _exit(f"cannot load the config: {str(error).strip().splitlines()[-1].strip()}", 2)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # What get_config itself refused arrives wrapped in its traceback.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, DropbnError) and "Traceback" not in str(cause):
                _exit(str(cause), 2)
            cause = cause.__cause__ or cause.__context__
        # For a key that a config lacks, ml_collections raises an AttributeError or KeyError. Its text is the
        # key, quoted once or twice, and on a second line the nearest key.
        text = str(error.args[0] if error.args else error)
        plain = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
        if new := re.match(r'Key "(\w+)" does not exist and cannot be added', plain):
            _exit(f"the config file sets a new field. {unknown('field', new[1], _fields(plain))}", 2)
        if "Traceback" in text:  # A config file failed; its own line is the last outside libraries.
            lines = [
                line
                for line in re.findall(r'File "(.+)", line (\d+)', text)
                if "site-packages" not in line[0]
            ]
            _exit(f"{', line '.join(lines[-1])}: {text.strip().splitlines()[-1]}", 2)
        key = re.match(r"(\w+)'?(?:\n(.*))?$", plain)
        _exit(f"the config has no field '{key[1]}'. {key[2] or ''}".strip() if key else text, 2)


def _fields(text):
    """The fields of a group in the dictionary that ml_collections prints, without those of its subgroups."""
    return re.findall(r"'(\w+)': ", re.sub(r"\{[^{}]*\}(?=.*\})", "", text))


def _parse(argv):
    with parsing():
        argv = flags.FLAGS(argv)
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, str):
            flags.FLAGS.config.lock()  # Raises what loading the file raised.
        return argv


def _exit(message, status):
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(status)  # Otherwise this process would wait for the others, and they for it.
    sys.exit(status)
