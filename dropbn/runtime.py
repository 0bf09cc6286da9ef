"""Settings of the process that every command shares. The library never touches them.

Each is a trick of its own: what it brings stands in benchmarks/notes.md, and it can be deleted when JAX, XLA
or the C library no longer need it.
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


def prepare() -> None:
    """Settings of the process that every command shares; before anything is drawn or compiled."""
    # On CPU this form of threefry draws dropout masks 2 to 3 times faster and compiles several times faster.
    # Every draw depends on it, so it is fixed once for all runs.
    jax.config.update("jax_threefry_partitionable", False)
    convolve_on_all_cores()
    _keep_compiled()
    _keep_memory()
    gc.set_threshold(_NEW_OBJECTS)


def convolve_on_all_cores() -> None:
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
