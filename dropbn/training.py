"""Training: the run that a config describes."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dropbn import checkpoint, data, feeds, initializers, models, noise, parallel, steps, workdir
from dropbn.data import sampling
from dropbn.errors import DropbnError
from dropbn.plan import Plan, abstract_state, make_plan
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


def programs(config, feed: feeds.Resident | feeds.Streamed, plan: Plan) -> Programs:
    """Composes feed and steps for the devices of the plan."""
    axis_name = parallel.AXIS

    def train(state, inputs, hyper):
        return steps.train_step(
            state,
            feed.train_batch(inputs, state.step, hyper.seed),
            hyper,
            build=lambda hyper: models.create(config.model, hyper.amount, axis_name),
            tx=plan.tx,
            task=plan.task,
            axis_name=axis_name,
        )

    on_each = functools.partial(parallel.on_each, devices=plan.devices)
    return Programs(
        on_each(train, donate=0),
        on_each(feed.eval_batch),
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
    like = abstract_state(config, dataset, plan)
    directory = workdir.claim(directory, config)
    with (
        workdir.lock(directory),
        Progress(_headline(config, dataset, plan), plan.total_steps, config.batch_size) as progress,
        checkpoint.manager(directory / "checkpoints") as checkpoints,
    ):
        if checkpoints.all_steps():
            state = checkpoint.restore(checkpoints, like)
        else:
            _refuse_lost_checkpoints(directory, plan)
            state = _initial_state(config, dataset, plan)
        step = saved = int(state.step)
        progress.resume(step)
        feed = feeds.create(config, dataset, plan.devices)
        run = programs(config, feed, plan)
        replicate = functools.partial(parallel.replicate, devices=plan.devices)
        state = replicate(state)
        hyper = replicate(steps.Hyper(config.seed, noise.amount(config.model.noise), 1.0))
        measured = {"train": dataset.plain(config.eval.train_examples), "test": dataset.test}
        if dataset.validation:
            measured["validation"] = dataset.validation
        chosen_by = "validation/accuracy" if dataset.validation else "test/accuracy"
        with workdir.metrics_writer(directory, step) as write:
            while step < plan.total_steps:
                epoch, done = divmod(step, plan.steps_per_epoch)
                num_steps = min(plan.steps_per_epoch - done, plan.total_steps - step)
                inputs = feed.train_inputs(epoch, range(done, done + num_steps))
                state, sums, seconds = _train_steps(run.train, state, inputs, hyper, progress)
                losses = [part["loss"] + part.get("penalty", 0) for part in sums]
                _refuse_nonfinite(losses, step + 1, saved)
                step += num_steps
                on_train = _means(sums)
                found = {name: _evaluate(run, feed, state, split) for name, split in measured.items()}
                # The last step's update may have been the one that diverged.
                _refuse_nonfinite([sum(means["loss"] for means in found.values())], step, saved)
                record = {
                    "step": step,
                    "epoch": step / plan.steps_per_epoch,
                    **{f"train/{key}": value for key, value in on_train.items()},
                    "train/accuracy_test_mode": found.pop("train")["accuracy"],
                    **{
                        f"{name}/{key}": value
                        for name, means in found.items()
                        for key, value in means.items()
                    },
                    "images_per_second": num_steps * config.batch_size / seconds,
                }
                write(record)
                progress.epoch(record)
                if step - saved >= plan.checkpoint_every or step == plan.total_steps:
                    checkpoint.save(checkpoints, step, parallel.first(state), record[chosen_by])
                    saved = step
    records = workdir.read_metrics(directory)
    if not records:
        raise DropbnError(f"The run in {directory} is finished, but its metrics.jsonl was removed.")
    return parallel.first(state), records


def _initial_state(config, dataset, plan):
    state = steps.create_state(plan.model, plan.tx, config.seed, dataset.train.image_shape)
    if config.model.init != "lsuv":
        return state
    images = dataset.plain(config.batch_size).images
    images = sampling.normalize(images, dataset.mean, dataset.std)
    params = initializers.lsuv(plan.model, state.variables, images)["params"]
    return state.replace(params=params, opt_state=plan.tx.init(params))


def _headline(config, dataset, plan):
    block, head = models.orders(config.model)
    devices = f"{len(plan.devices)} {plan.devices[0].platform} device{'s' * (len(plan.devices) > 1)}"
    return (
        f"{config.model.name} on {config.data.name}: {dataset.train.num_examples} training images, "
        f"{plan.total_steps} steps of {config.batch_size} on {devices}\n"
        f"blocks {block}, head {head}; drop is {config.model.noise.kind} {noise.amount(config.model.noise):g}"
    )


def _train_steps(train, state, inputs, hyper, progress):
    """Takes steps; returns (state, their sums on the host, seconds they took, compilation left out)."""
    sums = []
    started = time.monotonic()
    for given in inputs:
        state, new = train(state, given, hyper)
        sums.append(new)
        if len(sums) == 1:
            jax.block_until_ready(new)  # The first step may compile: the others' time stands for it.
            compiled = time.monotonic()
        progress.step(sums)
    number, sums = len(sums), parallel.first(sums)
    seconds = time.monotonic() - (compiled if number > 1 else started)
    return state, sums, seconds * number / max(number - 1, 1)


def _evaluate(run, feed, state, split):
    sums = [run.evaluate(state, run.batch(inputs)) for inputs in feed.eval_inputs(split)]
    sums = parallel.first(sums)
    counted = sum(int(part["count"]) for part in sums)
    assert counted == split.num_examples, f"counted {counted} of {split.num_examples} images"
    return _means(sums)


def _means(sums):
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
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
