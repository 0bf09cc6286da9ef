"""Trains the network of a config: python train.py --config=configs/digits.py [--config.field=value ...]"""

import pathlib
import re

from dropbn import starting

starting.guard()  # What follows takes seconds to import.

from absl import flags  # noqa: E402

from dropbn import cli, processes  # noqa: E402
from dropbn.errors import extra  # noqa: E402

with cli.parsing(), extra("train"):
    from ml_collections import config_flags

_DIGITS = str(pathlib.Path(__file__).parent / "configs" / "digits.py")
with cli.parsing():
    _CONFIG = config_flags.DEFINE_config_file("config", _DIGITS, "The experiment: a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; by default runs/<config name>.")
_CHECKPOINTS = flags.DEFINE_string(
    "checkpoint_dir",
    "",
    "Where its checkpoints go; by default the workdir. May be gs://bucket/run.",
)
processes.define()


def main():
    import jax

    from dropbn import data
    from dropbn.diagnose import lint
    from dropbn.train import console, fields, loop, measurements
    from dropbn.train.plan import make_plan

    fields.check(_CONFIG.value)
    workdir = _WORKDIR.value or f"runs/{_name(flags.FLAGS['config'].config_filename)}"
    dataset = data.load(_CONFIG.value.data)
    plan = make_plan(_CONFIG.value, dataset)
    image = jax.ShapeDtypeStruct((2, *dataset.train.image_shape), "float32")
    for line in lint.check(plan.model, image).summary():
        print(line)
    state, records = loop.run_plan(plan, workdir, dataset, _CHECKPOINTS.value)
    shift = measurements.measure_shift(plan.config, dataset, state)
    console.print_run(records, shift, workdir)


def _name(config_filename):
    """runs/digits for configs/digits.py; runs/li2018-a-0.5 for configs/li2018.py:a,0.5."""
    file, _, argument = config_filename.partition(":")
    return re.sub(r"[^\w.=]+", "-", f"{pathlib.Path(file).stem} {argument}".strip())


if __name__ == "__main__":
    cli.run(main, interrupted="the same command goes on from the last checkpoint")
