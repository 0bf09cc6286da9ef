"""From command to first step: python -m benchmarks.start

Processes that import, load data, make the initial state and take a first step, as train.py does; each config
first with an empty compilation cache and then with the one that the first start has left. Also what importing
dropbn adds to importing Flax, in turns.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

from benchmarks import side_by_side
from benchmarks.side_by_side import Row

CONFIGS = {"digits": {}, "PreResNet-110 on digits": {"depth": 110}}
PHASES = ("import", "data", "init", "compile")
ROUNDS = 3


def rows() -> list[Row]:
    """Seconds of each phase, first and second start, and of the imports."""
    found = []
    for name, fields in CONFIGS.items():
        with tempfile.TemporaryDirectory() as cache:
            starts = [_start(fields, cache) for _ in range(2)]
        for which, start in zip(("first", "second"), starts, strict=True):
            parts = ", ".join(f"{phase} {start[phase]:.1f}" for phase in PHASES)
            found.append(Row(f"{name}, {which} start", f"{sum(start.values()):.1f} s: {parts}"))
        ratio = sum(starts[1].values()) / sum(starts[0].values())
        found.append(Row(f"{name}, second / first start", f"{ratio:.2f}", "at most 0.33", ratio <= 1 / 3))
    imports = {name: lambda code=code: _python(code) for name, code in IMPORTS.items()}
    seconds = side_by_side.turns(imports, ROUNDS)
    for name in ("dropbn", "dropbn's training"):
        added = side_by_side.spread(seconds[name] - seconds["flax"])
        target = 0.3 if name == "dropbn" else None
        what = f"seconds that importing {name} adds to importing flax.linen and optax"
        found.append(side_by_side.at_most(what, added, target) if target else Row(what, str(added)))
    return found


_FLAX = "import flax.linen, optax"
# What a user of a library imports: the modules that serve any Linen model.
IMPORTS = {
    "flax": _FLAX,
    "dropbn": f"{_FLAX}; from dropbn import noise, modes, shift, gap, recalibrate, lint, surgery",
    "dropbn's training": f"{_FLAX}; from dropbn import training",
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


def _start(fields, cache):
    code = "import time; started = time.monotonic(); from benchmarks import start; start.phases(started)"
    return json.loads(_python(code, json.dumps(fields), XDG_CACHE_HOME=cache).splitlines()[-1])


def phases(started: float) -> None:
    """Prints the seconds of each phase of this process as JSON; its argument are fields of `config.model`."""
    import jax

    from configs import digits
    from dropbn import data, doorway, feeds, noise, plan, programs, runs, steps, training  # noqa: F401

    marks = [started, time.monotonic()]
    doorway.prepare()
    config = digits.get_config()
    config.model.update(json.loads(sys.argv[1]))
    dataset = data.load(config.data)
    planned = plan.make_plan(config, dataset)
    marks.append(time.monotonic())
    state = planned.layout.put([runs.initial_state(config, dataset, planned)])
    marks.append(time.monotonic())
    feed = feeds.create(config, dataset, planned.layout)
    step = programs.create(config, feed, planned).train
    hyper = planned.layout.put([steps.Hyper(config.seed, noise.amount(config.model.noise), 1.0)])
    inputs = next(iter(feed.train_inputs(0, range(1))))
    jax.block_until_ready(step(state, inputs, hyper))
    marks.append(time.monotonic())
    seconds = [after - before for before, after in itertools.pairwise(marks)]
    print(json.dumps(dict(zip(PHASES, seconds, strict=True))))


if __name__ == "__main__":
    side_by_side.show(rows())
