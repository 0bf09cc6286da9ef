"""Training: the run that a config describes."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from dropbn import data
from dropbn.errors import DropbnError, Preempted
from dropbn.train import divergence, feeds, fields, preemption, programs, steps, workdir
from dropbn.train.plan import Plan, make_plan
from dropbn.train.progress import Progress, Reporter
from dropbn.train.runs import open_run


def train_and_evaluate(
    config: ConfigDict,
    directory: str | os.PathLike,
    dataset: data.Dataset | None = None,
    checkpoint_dir: str = "",
    write: Callable[[dict], None] | None = None,
) -> tuple[steps.TrainState, list[dict]]:
    """Runs a config in a workdir, from its newest checkpoint if it has one.

    After every epoch, and at the end, the training accuracy in train mode and in test mode and the test
    accuracy go to metrics.jsonl and to the terminal. Every `config.log_every` the losses are checked and go
    to TensorBoard. Checkpoints are saved at ends of epochs, or within one, so that no two are more than
    `config.checkpoint_every` apart; at the end; and on SIGTERM.

    Args:
      config: a config with the fields of `configs/base.py`.
      directory: the workdir.
      dataset: the data, by default that of the config.
      checkpoint_dir: where the checkpoints go, if not into the workdir; also gs://bucket/run.
      write: a logger of your own; it is called with every record {"step", name: value} that goes to
        TensorBoard. Of several processes, the first one calls it.

    Returns:
      (final state on the host, all records of metrics.jsonl).

    Raises:
      DropbnError: anything in the config that does not fit, before anything is written; a workdir of
        another run, of a run under way, or of one whose checkpoints or records are gone; checkpoints that
        cannot be read, of another network or of other data; something that cannot be written; a run that
        diverged: the first layer and step that were not finite.
      Preempted: SIGTERM came; the state was saved.
    """
    fields.check(config)
    dataset = dataset or data.load(config.data)
    return run_plan(make_plan(config, dataset), directory, dataset, checkpoint_dir, write)


def run_plan(
    plan: Plan,
    directory: str | os.PathLike,
    dataset: data.Dataset,
    checkpoint_dir: str = "",
    write: Callable[[dict], None] | None = None,
) -> tuple[steps.TrainState, list[dict]]:
    """`train_and_evaluate` for a config that is already resolved."""
    with Progress(_headline(plan, dataset), plan.total_steps, plan.batch_size) as progress:
        [outcome] = train_together([plan], [directory], [dataset], progress, checkpoint_dir, write)
    if isinstance(outcome, DropbnError):
        raise outcome
    return outcome, workdir.read_metrics(directory)


def train_together(
    plans: Sequence[Plan],
    directories: Sequence[str | os.PathLike],
    datasets: Sequence[data.Dataset],
    progress: Reporter,
    checkpoint_dir: str = "",
    write: Callable[[dict], None] | None = None,
) -> list[steps.TrainState | DropbnError]:
    """Trains runs that stand at the same step, by one compiled program, and keeps each in its workdir.

    Args:
      plans: one for each run, all of one `structure`: they differ in seed, noise amount, learning rate and
        the choice of training images alone. The first one's layout has one device for each run, or all
        devices share a single run.
      directories: their workdirs.
      datasets: their data.
      progress: shows the runs.
      checkpoint_dir, write: of a single run; see `train_and_evaluate`.

    Returns:
      For each run its final state on the host, or the DropbnError that ended it; the others go on without
      it. Any other error ends them all.
    """
    outcomes: dict[int, steps.TrainState | DropbnError] = {}
    with contextlib.ExitStack() as stack:
        opened = {}
        for i, (plan, directory, dataset) in enumerate(zip(plans, directories, datasets, strict=True)):
            try:
                opened[i] = stack.enter_context(
                    open_run(plan, directory, checkpoint_dir, dataset, progress, write)
                )
            except DropbnError as error:
                outcomes[i] = error
        begun = {i: run.step for i, run in opened.items()}
        for i in [i for i in opened if begun[i] != begun[min(opened)]]:
            outcomes[i] = DropbnError(
                f"{directories[i]} stands at step {begun[i]}: another process trains there."
            )
            del opened[i]
        if opened:
            _train(list(opened.values()), [datasets[i] for i in opened], progress)
            for i, run in opened.items():
                outcomes[i] = run.failure or run.state
    return [outcomes[i] for i in range(len(plans))]


def _train(runs, datasets, progress):
    """Trains opened runs to the end; each keeps its state or its failure."""
    plan, layout = runs[0].plan, runs[0].plan.layout
    step = saved = runs[0].step
    progress.resume(step)
    feed = feeds.create([run.plan for run in runs], datasets)
    program = programs.create(plan, feed)
    state = layout.put([run.state for run in runs])
    hyper = layout.put([_hyper(run.plan, plan) for run in runs])
    splits = _measured_splits(plan, datasets)
    inputs = None  # of the epoch under way
    with preemption.watched(shared=layout.processes > 1) as should_stop:
        while step < plan.total_steps and not all(run.failure for run in runs):
            epoch, done = divmod(step, plan.steps_per_epoch)
            epoch_end = min(step - done + plan.steps_per_epoch, plan.total_steps)
            if inputs is None:
                inputs = feed.train_inputs(epoch, range(done, done + epoch_end - step))
                timed, seconds = 0, 0.0
            until = min(epoch_end, saved + plan.checkpoint_every, step + plan.log_every)
            state, sums, took, stopped = _take_steps(
                program, state, itertools.islice(inputs, until - step), hyper, step, should_stop, progress
            )
            again = functools.partial(feed.train_inputs, epoch, range(done, done + len(sums)))
            step, timed, seconds = step + len(sums), timed + len(sums), seconds + took
            _absorb(runs, program, state, sums, hyper, again)
            if step == epoch_end:
                inputs = None
                _end_epoch(runs, program, feed, state, splits, timed / seconds, progress)
            # Checkpoints at ends of epochs are preferred: one is saved there if the next end came too late.
            wait = plan.steps_per_epoch if step == epoch_end else 1
            if stopped or step == plan.total_steps or step + wait - saved > plan.checkpoint_every:
                for run in runs:
                    if not run.failure:
                        run.save()
                saved = step
            if stopped:
                raise Preempted(f"stopped by SIGTERM at step {step} of {plan.total_steps}, saved")


def _take_steps(program, state, inputs, hyper, step, should_stop, progress):
    """Takes steps until the inputs end or SIGTERM comes.

    Returns (state, the steps' sums on the devices, seconds they took without compilation, whether SIGTERM
    came).
    """
    sums, stopped = [], False
    started = time.monotonic()
    for given in inputs:
        state, new = program.train_step(state, given, hyper)
        sums.append(new)
        if len(sums) == 1:
            jax.block_until_ready(new)  # The first step may compile: the others' time stands for it.
            compiled = time.monotonic()
        progress.step(sums)
        if stopped := should_stop(step + len(sums)):
            break
    jax.block_until_ready(sums)
    seconds = time.monotonic() - (compiled if len(sums) > 1 else started)
    return state, sums, seconds * len(sums) / max(len(sums) - 1, 1), stopped


def _absorb(runs, program, state, sums, hyper, again):
    """Hands each run what its steps have brought; if that is not finite, finds out where it began.

    `again()` gives the inputs of these steps once more.
    """
    layout = runs[0].plan.layout
    states, sums = layout.get(state, len(runs)), layout.get(sums, len(runs))
    for i, run in enumerate(runs):
        if not run.failure and not run.absorb(states[i], sums[i]):
            before = [run.state for run in runs]
            found = divergence.locate(program, layout, before, again(), hyper, i)
            run.failure = run.diverged(*(found or (int(states[i].step), "the loss")))


def _end_epoch(runs, program, feed, state, splits, steps_per_second, progress):
    """Evaluates the runs on every split, and records the epoch of those that have not failed."""
    sums = {}
    for name, of_runs in splits.items():
        batches = (program.eval_batch(inputs) for inputs in feed.eval_inputs(*of_runs))
        found = [program.eval_step(state, batch) for batch in batches]
        sums[name] = runs[0].plan.layout.get(found, len(runs))
        counted = sum(int(part["count"]) for part in sums[name][0])
        assert counted == of_runs[0].num_examples, f"{counted} images of {name} were counted"
    for i, run in enumerate(runs):
        if not run.failure:
            try:
                record = run.record({name: of_runs[i] for name, of_runs in sums.items()}, steps_per_second)
                progress.epoch(record)
            except DropbnError as error:
                run.failure = error


def _measured_splits(plan, datasets):
    """{name of a split: each run's images of it} that are evaluated after every epoch."""
    splits = {
        "train": [dataset.plain(plan.eval_examples) for dataset in datasets],
        "test": [dataset.test for dataset in datasets],
    }
    if datasets[0].validation:
        splits["validation"] = [dataset.validation for dataset in datasets]
    return splits


def _hyper(plan, first):
    rate, base = plan.learning_rate, first.learning_rate
    scale = 1.0 if rate == base else rate / base
    return steps.Hyper(plan.seed, plan.architecture.amount, scale)


def _headline(plan, dataset):
    network, devices = plan.architecture, plan.layout.devices
    return (
        f"{network.name} on {plan.config.data.name}: {dataset.train.num_examples} training images, "
        f"{plan.total_steps} steps of {plan.batch_size} on {len(devices)} {devices[0].platform} "
        f"device{'s' * (len(devices) > 1)}\n"
        f"blocks {network.block}, head {network.head}; drop is {network.noise} {network.amount:g}"
    )
