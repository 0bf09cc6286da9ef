"""What the commands share: flags, settings of the process, errors as sentences."""

import contextlib
import ctypes
import gc
import os
import pathlib
import re
import shlex
import stat
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import absl.logging
import jax
import jaxlib.version
from absl import app, flags

from dropbn.errors import DropbnError
from dropbn.train.preemption import Preempted

# A process that has been silent for so long is taken for dead, and the others end.
_HEARTBEAT_SECONDS = 30
# Of kept programs: the most that they take on disk, and the compilation that is worth keeping: also the
# many small ones of an eager init.
_CACHE_BYTES, _CACHE_SECONDS = 2 * 1024**3, 0.0
_XLA_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
# Python looks for unreachable objects after so many new ones. By default it does after some hundreds, which
# slows tracing down: that makes a million that stay.
_NEW_OBJECTS = 50_000
# glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX: one heap that grows and is not given back. M_MXFAST:
# free blocks join at once if they are small too, because to join all those of a large heap takes long.
_MALLOC = {-4: 0, -1: 2**31 - 1, -8: 1, 1: 0}


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
    absl.logging.set_verbosity(absl.logging.FATAL)  # What goes wrong is raised, and said once.
    prepare()

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


def prepare() -> None:
    """Settings of the process that every command shares; before anything is drawn or compiled."""
    # On CPU this form of threefry draws dropout masks 2 to 3 times faster and compiles several times faster.
    # Every draw depends on it, so it is fixed once for all runs.
    jax.config.update("jax_threefry_partitionable", False)
    convolve_on_all_cores()
    _keep_compiled()
    _keep_memory()
    gc.set_threshold(_NEW_OBJECTS)


def convolve_on_all_cores():
    """Gives convolutions on CPU to Eigen, as jaxlib once did: YNNPACK runs many of them on one core.

    To be called before the first computation. What the user says of the flag stays. XLA ends a process whose
    flags it does not know: jaxlibs that were not tried, and libtpu, which brings its own XLA, are left alone.
    """
    name = _XLA_FLAG.partition("=")[0]
    given = os.environ.get("XLA_FLAGS", "")
    if name in given or not (0, 10) <= jaxlib.version.__version_info__ < (0, 13) or find_spec("libtpu"):
        return
    os.environ["XLA_FLAGS"] = f"{given} {_XLA_FLAG}".strip()


def _keep_compiled():
    """Keeps compiled programs for the next start, where the user has not said where or that none are kept.

    Whoever can write to that directory can make this process run code, so it has to be the user's alone.
    """
    if {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & set(os.environ):
        return
    directory = _private_directory()
    if directory is None:
        return
    _forget_the_oldest(directory)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _CACHE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _private_directory():
    """dropbn/xla under the user's cache directory; None where it is not the user's alone."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = pathlib.Path(root) if os.path.isabs(root) else pathlib.Path.home() / ".cache"
        directory = root / "dropbn" / "xla"
        root.mkdir(parents=True, exist_ok=True)
        for path in (directory.parent, directory):
            path.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid"):
            for path in (directory, directory.parent):
                found = path.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                    return None
        return directory if os.access(directory, os.W_OK) else None
    except (OSError, RuntimeError):  # a read-only home, or none
        return None


def _forget_the_oldest(directory):
    """Removes what was not used for longest, down to the most that is kept."""
    found = []
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process removes it
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > _CACHE_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()


def _keep_memory():
    """Lets the process keep what it frees: a step on CPU otherwise pays for its memory's pages again.

    The GNU C library gives blocks of this size back to the system at once, which then hands out and clears
    every page anew in the next step. Other libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - raises where it is another library
        for option, value in _MALLOC.items():
            library.mallopt(option, value)


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
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(status)  # Else this process would wait for the others, and they for it.
    sys.exit(status)
