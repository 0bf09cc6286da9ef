"""All benchmarks, and their table in docs/speed.md: python -m benchmarks.all [NAME ...]

With names, those alone are run and printed, and the file is left as it is.
"""

import concurrent.futures
import datetime
import importlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import sys
import time

from benchmarks import side_by_side

# In the order of the page; each module has a function `rows` and says what it measures.
NAMES = ("train_step", "noise", "start", "data_feed", "observation", "gpu")
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "speed.md"
_PREFACE = """
Rivals run alternately, each in a process of its own unless its section says otherwise. The tables give the
median over rounds and, in brackets, the quartiles. Medians and quartiles of ratios are those of the rounds'
ratios. PyTorch is compared if it is installed (`pip install torch`); it is no dependency. What was tried to
reach these numbers, including what did not help, is in [benchmarks/notes.md](../benchmarks/notes.md). What
larger machines should reach is in [scaling.md](scaling.md).
"""
_PACKAGES = ("jax", "flax", "numpy", "torch")


def measure(name: str) -> list[side_by_side.Row]:
    """A benchmark's rows, from a process of its own; on the CPU but for "gpu"."""
    before = os.environ.get("JAX_PLATFORMS")
    if name != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_rows, name).result()
    finally:
        if before is None:
            os.environ.pop("JAX_PLATFORMS", None)
        else:
            os.environ["JAX_PLATFORMS"] = before


def _rows(name):
    return importlib.import_module(f"benchmarks.{name}").rows()


def page(
    found: dict[str, list[side_by_side.Row]], device: str, versions: str, date: str, minutes: float
) -> str:
    """docs/speed.md."""
    how = f"Written by `python -m benchmarks.all` in {minutes:.0f} minutes on {date}; {device}; {versions}."
    lines = ["# Speed", "", how, "", *_PREFACE.strip().splitlines()]
    for name, rows in found.items():
        title, _, text = importlib.import_module(f"benchmarks.{name}").__doc__.partition("\n")
        heading, command = title.split(": ", 1)
        lines += ["", f"## {heading}", "", f"`{command}`", "", *text.strip().splitlines(), ""]
        lines += ["| what | measured | target | |", "|---|---|---|---|"]
        for row in rows:
            verdict = {None: "", True: "met", False: "**missed**"}[row.met]
            lines.append(f"| {row.what} | {row.measured} | {row.target} | {verdict} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor, as the system calls it, and the cores that this process may use."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line),
            model,
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}, {platform.system()}"


def installed() -> str:
    """Python and the packages that are compared, with their versions."""
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def main(names: list[str]) -> None:
    started, found = time.monotonic(), {}
    for name in names or NAMES:
        begun = time.monotonic()
        found[name] = measure(name)
        print(f"\n{name}, {time.monotonic() - begun:.0f} s")
        side_by_side.show(found[name])
        if not names:  # After each, so that nothing is lost where a run is cut short.
            date = datetime.date.today().strftime("%-d %B %Y")
            minutes = (time.monotonic() - started) / 60
            PAGE.write_text(page(found, machine(), installed(), date, minutes))


if __name__ == "__main__":
    main(sys.argv[1:])
