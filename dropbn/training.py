"""Training: the run that a config describes."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from dropbn import checkpoint, data, feeds, initializers, models, noise, parallel, steps, workdir
from dropbn.data import sampling
from dropbn.errors import DropbnError
from dropbn.plan import Plan, abstract_state, make_plan, structure
from dropbn.progress import Progress


class Programs(NamedTuple):
    """The compiled functions of a run; each takes and returns values stacked over the devices.

    Attributes:
      train: (state, the feed's train inputs, hyper) -> (state, sums). The state's memory is donated.
      batch: the feed's eval inputs -> a masked batch for `evaluate`.
      evaluate: (state, masked batch) -> sums.
    """

    train: Callable
    batch: Callable
    evaluate: Callable


# The programs of the last few kinds of runs: a study's next members need no compilation.
_KEPT = {}
_NUMBER_KEPT = 2


def programs(config, feed: feeds.Resident | feeds.Streamed, plan: Plan) -> Programs:
    """Composes feed and steps for the devices of the plan; the same ones for configs of one `structure`."""
    base = config.optimizer.learning_rate  # which `Hyper.learning_rate_scale` is relative to
    key = structure(config), base, feed.batches, plan.layout, plan.total_steps, plan.steps_per_epoch
    if key not in _KEPT:
        for oldest in list(_KEPT)[: 1 - _NUMBER_KEPT]:
            del _KEPT[oldest]
        _KEPT[key] = _compose(config, feed.batches, plan)
    return _KEPT[key]


def _compose(config, batches, plan):
    axis_name = plan.layout.axis_name

    def train(state, inputs, hyper):
        return steps.train_step(
            state,
            batches.train(inputs, state.step, hyper.seed),
            hyper,
            build=lambda hyper: models.create(config.model, hyper.amount, axis_name),
            tx=plan.tx,
            task=plan.task,
            axis_name=axis_name,
        )

    on_each = functools.partial(parallel.on_each, layout=plan.layout)
    return Programs(
        on_each(train, donate=0),
        on_each(batches.evaluate),
        on_each(functools.partial(steps.eval_step, model=plan.model, task=plan.task, axis_name=axis_name)),
    )


def train_and_evaluate(
    config, directory, dataset: data.Dataset | None = None
) -> tuple[steps.TrainState, list[dict]]:
    """Runs a config in a workdir, from its last checkpoint if it has one.

    After every epoch, and at the end, the training accuracy in train mode and in test mode and the test
    accuracy go to metrics.jsonl and to the terminal. The state goes to a checkpoint at the first end of an
    epoch that is `config.checkpoint_every` after the last one, and at the end.

    Args:
      config: a config with the fields of `configs/base.py`.
      directory: the workdir.
      dataset: the data, by default that of the config.

    Returns:
      (final state on the host, all records of metrics.jsonl).

    Raises:
      DropbnError: anything in the config that does not fit, before anything is written; a workdir of
        another run, of a run under way, or of one whose checkpoints are gone; a checkpoint that cannot be
        restored; a loss that is not finite.
    """
    dataset = dataset or data.load(config.data)
    plan = make_plan(config, dataset)
    with Progress(_headline(config, dataset, plan), plan.total_steps, config.batch_size) as progress:
        [outcome] = train([config], [directory], dataset, plan, progress)
    if isinstance(outcome, DropbnError):
        raise outcome
    return outcome, workdir.read_metrics(directory)


def train(
    configs: list, directories: list, dataset: data.Dataset, plan: Plan, progress
) -> list[steps.TrainState | DropbnError]:
    """Trains runs that stand at the same step, by one compiled program, and keeps each in its workdir.

    Args:
      configs: one for each run, which `make_plan` has seen; they differ in seed, noise amount and learning
        rate alone.
      directories: their workdirs.
      dataset: the data.
      plan: of the first config. Its layout has one device for each run, or all devices share a single run.
      progress: shows the runs; it has the methods of `dropbn.progress.Progress`.

    Returns:
      For each run its final state on the host, or the DropbnError that ended it; the others go on without
      it. Any other error ends them all.
    """
    outcomes = [None] * len(configs)
    with contextlib.ExitStack() as stack:
        runs = {}
        for i, (config, directory) in enumerate(zip(configs, directories, strict=True)):
            try:
                runs[i] = stack.enter_context(_opened(config, directory, dataset, plan))
            except DropbnError as error:
                outcomes[i] = error
        begun = {i: int(run.state.step) for i, run in runs.items()}
        for i in [i for i in runs if begun[i] != begun[min(runs)]]:
            outcomes[i] = DropbnError(
                f"{directories[i]} stands at step {begun[i]}: another process trains there."
            )
            del runs[i]
        if runs:
            trained = _train(list(runs.values()), dataset, plan, progress)
            for i, outcome in zip(runs, trained, strict=True):
                outcomes[i] = outcome
    return outcomes


class _Run(NamedTuple):
    """What a run has open while it trains: the state that it starts from, its checkpoints and records."""

    config: ml_collections.ConfigDict
    state: steps.TrainState
    checkpoints: Any
    write: Callable[[dict], None]


@contextlib.contextmanager
def _opened(config, directory, dataset, plan):
    like = abstract_state(config, dataset, plan)
    shared = plan.layout.processes > 1
    writes = parallel.is_first() or not shared
    if shared and not writes:  # One process makes the workdir, the others find it.
        parallel.wait_for_all(f"{directory} is claimed")
    try:
        directory = workdir.claim(directory, config)
    finally:
        if shared and writes:
            parallel.wait_for_all(f"{directory} is claimed")
    with (
        workdir.lock(directory) if writes else contextlib.nullcontext(),
        checkpoint.manager(directory / "checkpoints", shared=shared) as checkpoints,
    ):
        if checkpoints.all_steps():
            state = checkpoint.restore(checkpoints, like)
        else:
            _refuse_lost_checkpoints(directory, plan)
            state = _initial_state(config, dataset, plan)
        if int(state.step) == plan.total_steps and not workdir.read_metrics(directory):
            raise DropbnError(f"The run in {directory} is finished, but its metrics.jsonl was removed.")
        step = int(state.step)
        writer = workdir.metrics_writer(directory, step) if writes else contextlib.nullcontext(_write_nothing)
        with writer as write:
            yield _Run(config, state, checkpoints, write)


def _write_nothing(record):
    """What a process does with a record that another one writes."""


def _train(runs, dataset, plan, progress):
    config, layout = runs[0].config, plan.layout
    step = saved = int(runs[0].state.step)
    progress.resume(step)
    feed = feeds.create(config, dataset, layout, [run.config.seed for run in runs])
    program = programs(config, feed, plan)
    state = layout.put([run.state for run in runs])
    hyper = layout.put([_hyper(run.config, config) for run in runs])
    measured = {"train": dataset.plain(config.eval.train_examples), "test": dataset.test}
    if dataset.validation:
        measured["validation"] = dataset.validation
    chosen_by = "validation/accuracy" if dataset.validation else "test/accuracy"
    failed = {}
    while step < plan.total_steps and len(failed) < len(runs):
        epoch, done = divmod(step, plan.steps_per_epoch)
        num_steps = min(plan.steps_per_epoch - done, plan.total_steps - step)
        inputs = feed.train_inputs(epoch, range(done, done + num_steps))
        state, sums, seconds = _train_steps(program.train, state, inputs, hyper, progress)
        found = {name: _evaluate(program, feed, state, split) for name, split in measured.items()}
        first_step, step = step + 1, step + num_steps
        saves = step - saved >= plan.checkpoint_every or step == plan.total_steps
        states = layout.take(state, len(runs)) if saves else None
        sums = layout.take(sums, len(runs))
        found = {name: layout.take(of_split, len(runs)) for name, of_split in found.items()}
        for i, run in enumerate(runs):
            if i in failed:
                continue
            means = {name: _means(of_split[i], measured[name]) for name, of_split in found.items()}
            try:
                _refuse_nonfinite(
                    [part["loss"] + part.get("penalty", 0) for part in sums[i]], first_step, saved
                )
                # The last step's update may have been the one that diverged.
                _refuse_nonfinite([sum(scores["loss"] for scores in means.values())], step, saved)
            except DropbnError as error:
                failed[i] = error
                continue
            record = {
                "step": step,
                "epoch": step / plan.steps_per_epoch,
                **{f"train/{key}": value for key, value in _means(sums[i]).items()},
                "train/accuracy_test_mode": means.pop("train")["accuracy"],
                **{f"{name}/{key}": value for name, scores in means.items() for key, value in scores.items()},
                "images_per_second": num_steps * config.batch_size / seconds,
            }
            run.write(record)
            progress.epoch(record)
            if saves:
                checkpoint.save(run.checkpoints, step, states[i], record[chosen_by])
        saved = step if saves else saved
    states = layout.take(state, len(runs))
    return [failed.get(i, states[i]) for i in range(len(runs))]


def _hyper(config, first):
    rate, base = config.optimizer.learning_rate, first.optimizer.learning_rate
    scale = 1.0 if rate == base else rate / base
    return steps.Hyper(config.seed, noise.amount(config.model.noise), scale)


def _initial_state(config, dataset, plan):
    model = models.create(config.model)
    state = steps.create_state(model, plan.tx, config.seed, dataset.train.image_shape)
    if config.model.init != "lsuv":
        return state
    images = dataset.plain(config.batch_size).images
    images = sampling.normalize(images, dataset.mean, dataset.std)
    params = initializers.lsuv(model, state.variables, images)["params"]
    return state.replace(params=params, opt_state=plan.tx.init(params))


def _headline(config, dataset, plan):
    block, head = models.orders(config.model)
    devices = plan.layout.devices
    devices = f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
    return (
        f"{config.model.name} on {config.data.name}: {dataset.train.num_examples} training images, "
        f"{plan.total_steps} steps of {config.batch_size} on {devices}\n"
        f"blocks {block}, head {head}; drop is {config.model.noise.kind} {noise.amount(config.model.noise):g}"
    )


def _train_steps(train, state, inputs, hyper, progress):
    """Takes steps; returns (state, their sums on the devices, seconds they took, compilation left out)."""
    sums = []
    started = time.monotonic()
    for given in inputs:
        state, new = train(state, given, hyper)
        sums.append(new)
        if len(sums) == 1:
            jax.block_until_ready(new)  # The first step may compile: the others' time stands for it.
            compiled = time.monotonic()
        progress.step(sums)
    jax.block_until_ready(sums)
    seconds = time.monotonic() - (compiled if len(sums) > 1 else started)
    return state, sums, seconds * len(sums) / max(len(sums) - 1, 1)


def _evaluate(program, feed, state, split):
    return [program.evaluate(state, program.batch(inputs)) for inputs in feed.eval_inputs(split)]


def _means(sums, split=None):
    """Means of a run's sums, which of a whole split count every image once."""
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    assert split is None or total["count"] == split.num_examples, f"{total['count']} images counted"
    names = {"loss": "loss", "correct": "accuracy", "penalty": "penalty"}
    return {names[name]: total[name] / total["count"] for name in total if name != "count"}


def _refuse_nonfinite(losses, first_step, saved):
    bad = [i for i, loss in enumerate(losses) if not np.isfinite(loss)]
    if bad:
        last_good = (
            f"the last good checkpoint is that of step {saved}" if saved else "there is no checkpoint yet"
        )
        raise DropbnError(
            f"The loss is not finite at step {first_step + bad[0]}; {last_good}. Lower "
            "optimizer.learning_rate, or give it an optimizer.warmup."
        )


def _refuse_lost_checkpoints(directory, plan):
    """Starting over would overwrite the records of a run that had come far beyond its first checkpoint."""
    records = workdir.read_metrics(directory)
    # A kill may leave records without a checkpoint while the first is being written, but not the second.
    if records and records[-1]["step"] >= 2 * plan.checkpoint_every + plan.steps_per_epoch:
        raise DropbnError(
            f"{directory} has records up to step {records[-1]['step']} but no checkpoint: its checkpoints "
            "were removed. Choose another --workdir, or remove this one to start over."
        )
