"""What a command says of an exception that nobody expected: a sentence, with the place in the user's file."""

import os
import re
import resource
import sys
import sysconfig
import traceback

import jax
from absl import flags

from dropbn.errors import DropbnError, headline, shown

_HERE = os.path.dirname(os.path.abspath(__file__))
_UNITS = {"": 1, "B": 1, "bytes": 1} | {
    f"{letter}{suffix}": 1024**power for power, letter in enumerate("KMGT", 1) for suffix in ("", "B", "iB")
}
_SIZE = r"([\d.]+) ?(bytes|[KMGT]i?B?|B)\b"


def sentence(error: BaseException) -> str:
    """The sentence for any exception that ends a command."""
    if isinstance(error, DropbnError):
        return str(error)
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return "nobody reads what this command prints: its standard output was closed"
    if isinstance(error, MemoryError) or _is_of_device_memory(error):
        return _memory(error)
    where = place(error)
    if isinstance(error, SystemExit):
        return f"sys.exit({shown(repr(error.code))}){where and f' in {where}'} ended the command"
    if isinstance(error, OSError):
        about = f": {shown(error.filename)}" if error.filename else ""
        return f"{error.strerror or shown(error)}{about}"
    if isinstance(error, SyntaxError) and where:
        return f"{where}: {error.msg}"
    first = shown(headline(str(error)))
    if where:
        return f"{where}: {type(error).__name__}: {first}"
    ours = traceback.extract_tb(error.__traceback__)[-1:]
    at = f" ({os.path.basename(ours[0].filename)}, line {ours[0].lineno})" if ours else ""
    return (
        f"{type(error).__name__}: {first}{at}. This is a mistake of dropbn or of what it uses: please report "
        "it with what DROPBN_TRACEBACK=1 shows"
    )


def place(error: BaseException) -> str:
    """FILE, line N of the innermost line that is neither ours nor a library's; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename and _is_own(error.filename):
        return f"{error.filename}, line {error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    # A config file's error arrives as the text of its traceback.
    frames += re.findall(r'File "(.+)", line (\d+)', str(error))
    own = [(file, line) for file, line in frames if _is_own(file)]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""


def show_traceback() -> None:
    """Prints the traceback of the exception under way, if DROPBN_TRACEBACK asks for it."""
    if os.environ.get("DROPBN_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exc()


def _is_own(file):
    """Whether a file is the user's: none of dropbn, of Python, of an installed package, nor the command."""
    if file.startswith("<"):
        return False
    path = os.path.abspath(file)
    command = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "")
    libraries = [
        _HERE,
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    ]
    return path != command and not any(path.startswith(library + os.sep) for library in libraries)


def _is_of_device_memory(error):
    """Whether XLA found too little memory; CUDA says so in words of its own."""
    return "RESOURCE_EXHAUSTED" in str(error) or "CUDA_ERROR_OUT_OF_MEMORY" in str(error)


def _memory(error):
    """Says how much memory was wanted and, where a batch size is to blame, which one would fit."""
    sizes = [float(number) * _UNITS[unit] for number, unit in re.findall(_SIZE, str(error))]
    wanted, free = (sizes or [0])[0], _free()
    if len(sizes) > 1 and (used := re.search(rf"Used {_SIZE} of {_SIZE}", str(error))):
        wanted, free = float(used[1]) * _UNITS[used[2]], float(used[3]) * _UNITS[used[4]]
    said = "out of memory"
    if wanted:
        said += f": {wanted / 1e9:.3g} GB were asked for" + f", about {free / 1e9:.3g} GB are free" * bool(
            free
        )
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    batch_size = getattr(config, "batch_size", None)
    if not batch_size or not _is_of_device_memory(error):
        return said
    return f"{said}, with batch_size={batch_size}. {_advice(batch_size, wanted, free)}"


def _advice(batch_size, wanted, free):
    """Memory grows with the batch. A power of two can be divided among devices and groups."""
    share = min(free / wanted, 0.5) if free and wanted else 0.5
    largest = int(batch_size * share)
    if not largest:
        return "Not even one image would fit: take a narrower network or smaller images"
    fitting = 1 << (largest.bit_length() - 1)
    return f"About {fitting} would fit: --config.batch_size={fitting}, which is another experiment"


def _free():
    """Bytes that a device, or without accelerators this process, can still take; 0 if nobody says."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split()[:2] for line in file)
        free = int(facts["MemAvailable:"]) * 1024
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            with open("/proc/self/statm") as file:
                free = min(free, most - int(file.read().split()[0]) * resource.getpagesize())
        return max(free, 0)
    except (OSError, KeyError, ValueError):  # not Linux
        return 0
