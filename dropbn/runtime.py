"""Settings of the process that every command shares. The library never changes them.

Each setting makes the commands faster, and benchmarks/notes.md says by how much. Delete one when JAX, XLA or
the C library no longer need it.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import stat
import sys
from importlib.util import find_spec

import jax
import jaxlib.version

# How much disk the compiled programs may take, and the shortest compilation that is kept: an eager init has
# many short ones.
_CACHE_BYTES, _CACHE_SECONDS = 2 * 1024**3, 0.0
_XLA_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
# Python looks for unreachable objects after so many new ones. Its default, some hundreds, slows down tracing,
# which makes a million objects that stay.
_NEW_OBJECTS = 50_000
# glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX make one heap that grows and is not given back. With
# M_MXFAST, small free blocks are joined at once, because joining all those of a large heap takes long.
_MALLOC = {-4: 0, -1: 2**31 - 1, -8: 1, 1: 0}


def prepare() -> None:
    """Makes the settings that every command shares. Call it before anything is drawn or compiled."""
    # On CPU this form of threefry draws dropout masks 2 to 3 times faster and compiles several times faster.
    # Every draw depends on it, so it is fixed once for all runs.
    jax.config.update("jax_threefry_partitionable", False)
    convolve_on_all_cores()
    _keep_compiled()
    _keep_memory()
    _ignore_late_reads()
    gc.set_threshold(_NEW_OBJECTS)


def convolve_on_all_cores() -> None:
    """Gives convolutions on CPU to Eigen, as jaxlib once did: YNNPACK runs many of them on one core.

    Call it before the first computation. A value that the user gave to the flag stays. XLA ends a process
    with a flag that it does not know, so nothing is set for jaxlibs that were not tried, or beside libtpu,
    which brings its own XLA.
    """
    name = _XLA_FLAG.partition("=")[0]
    given = os.environ.get("XLA_FLAGS", "")
    if name in given or not (0, 10) <= jaxlib.version.__version_info__ < (0, 13) or find_spec("libtpu"):
        return
    os.environ["XLA_FLAGS"] = f"{given} {_XLA_FLAG}".strip()


def _keep_compiled():
    """Keeps compiled programs for the next start, unless the user's environment configures JAX's cache.

    Whoever can write to that directory can make this process run code, so only the user may have access.
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
    """dropbn/xla under the user's cache directory; None unless it is the user's alone."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"
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
    except (OSError, RuntimeError):  # The home directory is read-only, or there is none.
        return None


def _forget_the_oldest(directory):
    """Removes the programs that were not used for longest, until the rest is small enough."""
    found = []
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # Another process may remove it.
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > _CACHE_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()


def _ignore_late_reads():
    """Says nothing of reads that end after orbax has given up on a damaged checkpoint, which is said once."""
    show = sys.unraisablehook

    def unless_late(found):
        if str(found.exc_value) != "Event loop is closed":
            show(found)

    sys.unraisablehook = unless_late


def _keep_memory():
    """Lets the process keep the memory that it frees, which the next step on a CPU needs again.

    The GNU C library gives large blocks back to the system at once, and in the next step the system clears
    every page anew. Other C libraries stay as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - raises for another library
        for option, value in _MALLOC.items():
            library.mallopt(option, value)
