"""What the commands share: flags, exit statuses, errors as sentences."""

import contextlib
import inspect
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence

import absl.logging
import jax
from absl import app, flags

from dropbn import failures, meeting, processes, runtime, starting
from dropbn.errors import DropbnError, Preempted, shown, unknown


class Ended(SystemExit):
    """The command ends, and why has been said. Any other SystemExit is somebody else's."""


def run(
    main: Callable[..., int | None],
    *,
    arguments: Sequence[str] = (),
    optional: Sequence[str] = (),
    failure: int = 1,
    interrupted: str = "",
) -> None:
    """Parses flags and calls `main`. Whatever goes wrong ends in a sentence, not in a traceback.

    DROPBN_TRACEBACK=1 in the environment shows the traceback as well. With --help it prints how the command
    is used instead, see `answer_help`. The exit status is that of `main`; `failure` if something went wrong;
    2 for flags and configs that are refused; 3 if the other processes did not come; 130 after Ctrl-C; 143
    after a SIGTERM that came while no step was under way, so that nothing was saved.

    Args:
      main: called with the positional arguments; returns the exit status.
      arguments: what the positional arguments are, for the sentence about a missing one.
      optional: those that may follow.
      failure: exit status after a `DropbnError`.
      interrupted: what to say after Ctrl-C.
    """
    for name in ("stdout", "stderr"):  # None if it was closed; the next file would take its number.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    about, most = inspect.getdoc(inspect.getmodule(main)) or "", len(arguments) + len(optional)
    answer_help(about, *arguments, *(f"[{name}]" for name in optional))
    absl.logging.set_verbosity(absl.logging.FATAL)  # Errors are raised, and said once.
    runtime.prepare()
    _end_on_sigterm(interrupted)

    def guarded(argv):
        given, failing = argv[1:], 2
        try:
            processes.connect()
            if given[most:]:
                unexpected = shown(given[most])
                _exit(
                    f"unexpected argument {unexpected!r}; flags begin with -- and take their value after =", 2
                )
            if len(given) < len(arguments):
                _exit(f"give {arguments[len(given)]}", 2)
            failing = failure
            status = main(*given)
            sys.stdout.flush()
        except Preempted as stop:
            meeting.leave()
            print(f"{stop.message}; resume with\n  {shlex.join(sys.orig_argv)}", flush=True)
            raise
        except Ended:
            raise
        except KeyboardInterrupt:
            _exit(f"interrupted{interrupted and '; '}{interrupted}", 130)
        except processes.NotAll as error:
            _exit(str(error), 3)
        except BaseException as error:
            failures.show_traceback()
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized():
                lost = shown(str(error).splitlines()[0])
                _exit(
                    f"lost another process ({lost}); {interrupted or 'run the command again on all'}", failure
                )
            _exit(failures.sentence(error), failing)
        meeting.leave()
        sys.exit(status)

    try:
        app.run(guarded, flags_parser=_parse)
    except KeyboardInterrupt:
        _exit("interrupted", 130)


def _end_on_sigterm(more):
    """Until a run is under way, SIGTERM ends the command at once: a scheduler must not take it for done."""
    if threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def end(number, frame):
        if os.getpid() != process:  # A process that was forked says nothing.
            os._exit(143)
        _exit(
            f"stopped by SIGTERM while no step was under way, so nothing was saved{more and '; '}{more}", 143
        )

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is starting.end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Turns errors in defining and parsing flags into a sentence.

    A config flag with a default needs it around its definition, because that already reads the overrides.
    """
    try:
        for word in sys.argv[1:]:
            file = word.removeprefix("--config=").partition(":")[0]
            if word.startswith("--config=") and os.path.exists(file) and not os.path.isfile(file):
                raise DropbnError(f"--config={shown(file)} is not a regular file.")  # A pipe may never end.
        yield
    except (Ended, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and not failures.place(error):
            raise  # absl has shown its help.
        failures.show_traceback()
        _exit(_config_sentence(error), 2)


def _config_sentence(error):
    # What get_config itself refused arrives wrapped in its traceback.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DropbnError) and "Traceback" not in str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    # For a key that a config lacks, ml_collections raises an AttributeError or KeyError. Its text is the
    # key, quoted once or twice, and on a second line the nearest key.
    text = str(error.args[0] if error.args else error)
    plain = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
    if new := re.match(r'Key "(\w+)" does not exist and cannot be added', plain):
        return f"the config file sets a new field. {unknown('field', new[1], _fields(plain))}"
    if "has no attribute 'get_config'" in text:
        return "the config file has no function get_config()"
    if isinstance(error, OSError) and not failures.place(error):
        return f"cannot load the config: {shown(str(error).strip().splitlines()[-1].strip())}"
    if "Traceback" in text:
        where = failures.place(error) or "the config file"
        return f"{where}: {shown(text.strip().splitlines()[-1])}"
    if isinstance(error, SyntaxError) and not error.filename:
        return f"the config file is not Python: {error.msg}"
    if failures.place(error):
        return failures.sentence(error)
    if not isinstance(error, (flags.Error, AttributeError, KeyError, TypeError, ValueError)):
        return failures.sentence(error)
    key = re.match(r"(\w+)'?(?:\n(.*))?$", plain)
    return f"the config has no field '{key[1]}'. {key[2] or ''}".strip() if key else text


def _fields(text):
    """The fields of a group in the dictionary that ml_collections prints, without those of its subgroups."""
    return re.findall(r"'(\w+)': ", re.sub(r"\{[^{}]*\}(?=.*\})", "", text))


def _parse(argv):
    with parsing():
        argv = flags.FLAGS(argv)
        if "config" in flags.FLAGS and hasattr(flags.FLAGS["config"], "config_filename"):
            config = flags.FLAGS.config  # Raises what loading the file raised.
            if not hasattr(config, "lock"):
                raise DropbnError(f"get_config() returns {shown(repr(config))}, not a ConfigDict.")
            config.lock()
        return argv


def _exit(message, status):
    with contextlib.suppress(OSError):  # Nobody reads the standard error either.
        print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        meeting.fail(message)
        os._exit(status)  # Otherwise this process would wait for the others, and they for it.
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at the end, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise Ended(status)
