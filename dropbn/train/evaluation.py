"""Evaluation of a run in its workdir, and the report that it leaves there."""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from dropbn import data, readers, writers
from dropbn.diagnose import gap, recalibrate, shift
from dropbn.errors import unknown
from dropbn.results import Result
from dropbn.train import checkpoint, measurements, runs, workdir
from dropbn.train.plan import abstract_state, make_plan


class Evaluation(NamedTuple):
    """What `evaluate` found; `dropbn.train.measurements` says on which images.

    Attributes:
      gap: the evaluation grid for noise {off, on} x BN {running, batch, converged, recalibrated} x {train,
        test} images, the shares of the gap, what each remedy brings, and the flipped images.
      shift: the shift of every BN layer, from exact population moments.
      shift_li2018: the same by the estimator of Li et al. (2018, section 4).
      recalibrated: accuracy and loss in test mode before and after recalibration, where it was asked for.
      sampled: scores of the test images in test mode and with the noise kept on, where they were asked for.
      config: the run's config.
      checkpoint_step: the step evaluated.
    """

    gap: gap.Gap
    shift: shift.Shift
    shift_li2018: shift.Shift
    recalibrated: Result | None
    sampled: Result | None
    config: dict
    checkpoint_step: int


def evaluate(
    directory: str | os.PathLike, which: str | int = "latest", recalibration: str = "", mc_samples: int = 0
) -> Evaluation:
    """Evaluates the run in a workdir and writes to its eval/: report.json, shift.csv, shift.png, flips.png.

    Args:
      directory: the workdir.
      which: the checkpoint: "latest", "best" or a step.
      recalibration: a recipe of `dropbn.diagnose.recalibrate`; its statistics are written to
        eval/batch_stats-RECIPE.npz, and the checkpoint stays as it is.
      mc_samples: draws of Monte Carlo dropout; 0 for none.

    Raises:
      DropbnError: no run in the workdir; no such checkpoint, or one that does not fit its config or was
        trained on other data; a recipe for a network without BN; samples of a network that has no noise or
        does not classify; a file that cannot be written.
    """
    config = workdir.read_config(directory)
    if recalibration and recalibration not in recalibrate.RECIPE_NAMES:
        raise unknown("recipe", recalibration, recalibrate.RECIPE_NAMES)
    dataset = data.load(config.data)
    plan = make_plan(config, dataset)
    directory = pathlib.Path(directory)
    with checkpoint.manager(workdir.checkpoints(directory), read_only=True) as checkpoints:
        state, about = checkpoint.restore_all(checkpoints, abstract_state(plan, dataset), which)
    expected = {"config": workdir.digest(plan.config), "dataset": dataset.fingerprint}
    runs.refuse_others(directory, about, expected)

    run = config, dataset, state
    recalibrated = sampled = batch_stats = None
    if recalibration:
        recalibrated, batch_stats = measurements.recalibrate_run(*run, recalibration)
    if mc_samples:
        sampled = measurements.sample_run(*run, mc_samples)
    found = Evaluation(
        measurements.explain_run(*run),
        measurements.measure_shift(*run),
        measurements.measure_shift(*run, "li2018"),
        recalibrated,
        sampled,
        config.to_dict(),
        int(state.step),
    )
    to = writers.make_part(directory, "eval")
    if recalibration:
        flat = {"/".join(path): leaf for path, leaf in flatten_dict(batch_stats).items()}
        with writers.replacing(to / f"batch_stats-{recalibration}.npz") as file:
            np.savez(file, **flat)
    found.shift.to_csv(to / "shift.csv")
    found.shift.plot(to / "shift.png", label=directory.name)
    found.gap.plot(to / "flips.png")
    # Last, so that a report is never newer than the files beside it.
    writers.replace(to / "report.json", json.dumps(_report(found), indent=1) + "\n")
    return found


def read_report(directory: str | os.PathLike) -> dict:
    """What `evaluate` has written to eval/report.json in a workdir.

    Raises:
      DropbnError: it cannot be read, or is something else.
    """
    fields: dict[str, readers.Kinds] = {"shift": [dict], "checkpoint_step": int}
    return readers.read_json(pathlib.Path(directory) / "eval" / "report.json", fields)


def _report(found):
    """What report.json holds: the rows of every table."""
    report = {
        "evaluation_grid": found.gap.rows,
        "gap": found.gap.shares.rows,
        "remedies": found.gap.remedies.rows,
        "advice": found.gap.advice,
        "flips": found.gap.flips.share,
        "flipped_images": found.gap.flips.rows,
        "shift": found.shift.rows,
        "shift_li2018": found.shift_li2018.rows,
    }
    report |= {key: getattr(found, key).rows for key in ("recalibrated", "sampled") if getattr(found, key)}
    return report | {"config": found.config, "checkpoint_step": found.checkpoint_step}
