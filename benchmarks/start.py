"""From command to first step: python -m benchmarks.start

train.py runs in processes that end after the first step. Each config starts first with an empty compilation
cache and then with the cache that the first start has left, five times in all. "Lint" is the check of the
network that train.py prints. "Rest" is the workdir, the checkpoints, TensorBoard's files and everything else.
If PyTorch is installed, tensorboardX imports it, which takes a second or more. PyTorch is installed here only
as a rival for other benchmarks, so this benchmark hides it. The last rows give the time that importing dropbn
adds to importing Flax, measured alternately.
"""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import side_by_side
from benchmarks.side_by_side import Row, spread

CONFIGS = {"digits": (), "PreResNet-110 on digits": ("--config.model.depth=110",)}
PHASES = ("import", "data", "lint", "init", "compile", "rest")
PAIRS, ROUNDS = 5, 3


def rows() -> list[Row]:
    """Seconds of each phase, first and second start, and of the imports."""
    found = []
    for name, flags in CONFIGS.items():
        pairs = [_pair(*flags) for _ in range(PAIRS)]
        for which, starts in zip(("first", "second"), zip(*pairs, strict=True), strict=True):
            medians = {phase: np.median([start[phase] for start in starts]) for phase in PHASES}
            parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in medians.items())
            found.append(Row(f"{name}, {which} start", f"{spread(map(_total, starts))} s: {parts}"))
        ratio = spread([_total(second) / _total(first) for first, second in pairs])
        found.append(side_by_side.at_most(f"{name}, second / first start", ratio, 1 / 3, "at most 0.333"))
    imports = {name: lambda code=code: _python(code) for name, code in IMPORTS.items()}
    seconds = side_by_side.turns(imports, ROUNDS)
    for name in ("dropbn", "dropbn's training"):
        added = spread(seconds[name] - seconds["flax"])
        target = 0.3 if name == "dropbn" else None
        what = f"seconds that importing {name} adds to importing flax.linen and optax"
        found.append(side_by_side.at_most(what, added, target) if target else Row(what, str(added)))
    return found


_FLAX = "import flax.linen, optax"
# What a user of a library imports: the modules that serve any Linen model.
IMPORTS = {
    "flax": _FLAX,
    "dropbn": f"{_FLAX}; from dropbn.nn import noise; "
    "from dropbn.diagnose import modes, shift, gap, recalibrate, lint, surgery",
    "dropbn's training": f"{_FLAX}; from dropbn.train import loop",
}


def _python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def _pair(*flags):
    """Seconds by phase of a first and of a second start."""
    with tempfile.TemporaryDirectory() as directory:
        return [_start(directory, f"--workdir={directory}/{run}", *flags) for run in range(2)]


def _start(cache, *flags):
    code = "import time; t = time.monotonic(); from benchmarks import start; start.until_first_step(t)"
    return json.loads(_python(code, *flags, XDG_CACHE_HOME=cache).splitlines()[-1])


def _total(start):
    return sum(start.values())


def until_first_step(started: float) -> None:
    """Runs train.py with this process's flags, prints the seconds of each phase as JSON, and ends."""
    sys.modules["torch"] = None
    import jax

    from dropbn import data
    from dropbn.diagnose import lint
    from dropbn.page import report  # noqa: F401
    from dropbn.train import programs, runs

    seconds = {"import": time.monotonic() - started}

    def watch(module, name, phase):
        function = getattr(module, name)

        def watched(*arguments):
            begun = time.monotonic()
            found = function(*arguments)
            seconds[phase] = time.monotonic() - begun
            return found

        setattr(module, name, watched)

    create = programs.create

    def create_for_one_step(*arguments):
        program = create(*arguments)

        def train_step(*arguments):
            begun = time.monotonic()
            jax.block_until_ready(program.train_step(*arguments))
            ended = time.monotonic()
            seconds["compile"] = ended - begun
            print("\n" + json.dumps(seconds | {"rest": ended - started - sum(seconds.values())}), flush=True)
            os._exit(0)

        return program._replace(train_step=train_step)

    watch(data, "load", "data")
    watch(lint, "check", "lint")
    watch(runs, "initial_state", "init")
    programs.create = create_for_one_step
    sys.argv[0] = "train.py"
    runpy.run_path(str(pathlib.Path(__file__).parent.parent / "train.py"), run_name="__main__")


if __name__ == "__main__":
    side_by_side.show(rows())
