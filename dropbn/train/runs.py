"""A run under way: its state, its records and its checkpoints."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp

from dropbn import data
from dropbn.data import sampling
from dropbn.errors import DropbnError
from dropbn.nn import initializers
from dropbn.train import checkpoint, divergence, parallel, steps, workdir
from dropbn.train.plan import Plan
from dropbn.train.progress import Reporter


@dataclasses.dataclass(eq=False)
class Run:
    """A run under way.

    Attributes:
      plan: what it does.
      state: on the host, as `absorb` last took it over; finite.
      totals: the sums of the epoch's steps so far.
      saved: the step of the last checkpoint; 0 if there is none.
      checkpoints: the opened checkpoints.
      log: where its numbers go.
      about: what is saved with each checkpoint: digests of the config and the data.
      accuracy: what the best checkpoint is chosen by; None within an epoch.
      failure: the error that ended it.
    """

    plan: Plan
    state: steps.TrainState
    totals: dict[str, float]
    saved: int
    checkpoints: ocp.CheckpointManager
    log: workdir.Log
    about: dict
    accuracy: float | None = None
    failure: DropbnError | None = None

    @property
    def step(self) -> int:
        return int(self.state.step)

    def absorb(self, state: steps.TrainState, sums: list[dict]) -> bool:
        """Takes over what steps have brought if all of it is finite; returns whether it is."""
        losses = [part["loss"] + part.get("penalty", 0) for part in sums]
        if not (np.isfinite(losses).all() and divergence.is_finite(state.variables)):
            return False
        self.state, self.accuracy = state, None
        self.totals = _added(self.totals, sums)
        self.log.scalars({"step": self.step, "train/loss_lately": _means(_added({}, sums))["loss"]})
        return True

    def record(self, sums: dict[str, list[dict]], steps_per_second: float) -> dict:
        """Writes and returns the record of an epoch that has ended.

        Args:
          sums: those of every measured split; "train" has training images in test mode.
          steps_per_second: the speed.

        Raises:
          DropbnError: a loss is not finite, because the last step's update diverged.
        """
        scores = {split: _means(_added({}, found)) for split, found in sums.items()}
        if not np.isfinite(sum(found["loss"] for found in scores.values())):
            raise self.diverged(self.step, "the loss")
        self.accuracy = scores["validation" if "validation" in scores else "test"]["accuracy"]
        record = {
            "step": self.step,
            "epoch": self.step / self.plan.steps_per_epoch,
            **{f"train/{key}": value for key, value in _means(self.totals).items()},
            "train/accuracy_test_mode": scores.pop("train")["accuracy"],
            **{f"{split}/{key}": value for split, found in scores.items() for key, value in found.items()},
            "images_per_second": steps_per_second * self.plan.batch_size,
        }
        self.totals = {}
        self.log.record(record)
        return record

    def save(self) -> None:
        """Saves the state in the background."""
        about = self.about | {"totals": self.totals}
        checkpoint.save(self.checkpoints, self.step, self.state, self.accuracy, about)
        self.saved = self.step

    def diverged(self, step: int, what: str) -> DropbnError:
        """The error that says what was not finite at a step."""
        last_good = (
            f"the last good checkpoint is that of step {self.saved}"
            if self.saved
            else "there is no checkpoint yet"
        )
        return DropbnError(
            f"{what[0].upper()}{what[1:]} is not finite at step {step}; {last_good}. Lower "
            "optimizer.learning_rate, or give it an optimizer.warmup."
        )


# For a process whose records another process writes.
_SILENT = workdir.Log(lambda record: None, lambda record: None)


@contextlib.contextmanager
def open_run(
    plan: Plan,
    directory: str | os.PathLike,
    checkpoint_dir: str,
    dataset: data.Dataset,
    progress: Reporter,
    write: Callable[[dict], None] | None = None,
) -> Iterator[Run]:
    """Opens the run of a plan in a workdir, at its newest checkpoint that can be read.

    Args:
      plan: the plan.
      directory: the workdir.
      checkpoint_dir: see `workdir.claim`.
      dataset: the data.
      progress: shows which checkpoints cannot be read.
      write: see `loop.train_and_evaluate`.

    Raises:
      DropbnError: what `loop.train_and_evaluate` says.
    """
    initial = initial_state(plan, dataset)  # It refuses orders that do not fit the images.
    shared = plan.layout.processes > 1
    writes = parallel.is_first() or not shared
    if shared and not writes:  # One process makes the workdir, and the others find it.
        parallel.share(directory)
    try:
        directory = workdir.claim(directory, plan.config, checkpoint_dir)
    finally:
        if shared and writes:
            parallel.share(directory)
    about = {"config": workdir.digest(plan.config), "dataset": dataset.fingerprint}
    with (
        workdir.lock(directory) if writes else contextlib.nullcontext(),
        checkpoint.manager(workdir.checkpoints(directory), shared=shared) as checkpoints,
    ):
        if checkpoints.all_steps():
            state, saved, notes = checkpoint.resume(checkpoints, jax.eval_shape(lambda: initial), shared)
            for note in notes:
                progress.note(note)
            refuse_others(directory, saved, about)
            totals, step = saved["totals"], int(state.step)
        else:
            _refuse_lost_checkpoints(directory, plan)
            state, totals, step = initial, {}, 0
        if step >= plan.steps_per_epoch and not workdir.read_metrics(directory):
            raise DropbnError(
                f"The run in {directory} stands at step {step}, but its metrics.jsonl was removed: choose "
                "another --workdir."
            )
        with workdir.log(directory, step, write) if writes else contextlib.nullcontext(_SILENT) as log:
            yield Run(plan, state, totals, step, checkpoints, log, about)


def refuse_others(directory: str | os.PathLike, saved: dict, about: dict) -> None:
    """Raises if a checkpoint was saved by a run of another config or on other data.

    Args:
      directory: the workdir.
      saved: what was saved with the checkpoint.
      about: what it should be: digests of the config and the data, as `Run.about` has them.
    """
    if saved.get("config") != about["config"]:
        raise DropbnError(f"The checkpoints of {directory} are of a run of another config.")
    before, now = saved["dataset"], about["dataset"]
    changed = [
        f"{split}: {before.get(split, 'none')} when the checkpoint was saved, {now.get(split, 'none')} now"
        for split in sorted(before.keys() | now.keys())
        if before.get(split) != now.get(split)
    ]
    if changed:
        raise DropbnError(
            f"The dataset has changed since the run in {directory} began: bring the old one back, or choose "
            "another --workdir.\n  " + "\n  ".join(changed)
        )


def _refuse_lost_checkpoints(directory, plan):
    """Raises if starting over would overwrite the records of a run that was past its first checkpoint."""
    records = workdir.read_metrics(directory)
    # A kill while the first checkpoint is being written leaves records without one; a later kill does not.
    if records and records[-1]["step"] >= 2 * plan.checkpoint_every + plan.steps_per_epoch:
        raise DropbnError(
            f"{directory} has records up to step {records[-1]['step']} but no checkpoint: its checkpoints "
            "were removed. Choose another --workdir, or remove this one to start over."
        )


def initial_state(plan: Plan, dataset: data.Dataset) -> steps.TrainState:
    """The state before the first step, with the initial weights of `config.model.init`."""
    state = steps.create_state(plan.model, plan.tx, plan.seed, dataset.train.image_shape)
    if plan.architecture.init != "lsuv":
        return state
    images = dataset.plain(plan.batch_size).images
    images = sampling.normalize(images, dataset.mean, dataset.std)
    params = initializers.lsuv(plan.model, state.variables, images)["params"]
    return dataclasses.replace(state, params=params, opt_state=plan.tx.init(params))


def _added(totals, sums):
    """The totals with the sums added."""
    totals = dict(totals)
    for part in sums:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def _means(totals):
    names = {"loss": "loss", "correct": "accuracy", "penalty": "penalty"}
    return {names[name]: value / totals["count"] for name, value in totals.items() if name != "count"}
