"""Training: the run that a config describes."""

import contextlib
import functools
import itertools
import time

import jax

from dropbn import data
from dropbn.errors import DropbnError, Preempted
from dropbn.train import divergence, feeds, preemption, programs, runs, steps, workdir
from dropbn.train.plan import Plan, make_plan
from dropbn.train.progress import Progress


def train_and_evaluate(
    config, directory, dataset: data.Dataset | None = None, checkpoint_dir: str = ""
) -> tuple[steps.TrainState, list[dict]]:
    """Runs a config in a workdir, from its newest checkpoint if it has one.

    After every epoch, and at the end, the training accuracy in train mode and in test mode and the test
    accuracy go to metrics.jsonl and to the terminal. Every `config.log_every` the losses are looked at and
    go to TensorBoard. The state goes to a checkpoint at ends of epochs, or within one, so that no two are
    more than `config.checkpoint_every` apart; at the end; and on SIGTERM.

    Args:
      config: a config with the fields of `configs/base.py`.
      directory: the workdir.
      dataset: the data, by default that of the config.
      checkpoint_dir: where the checkpoints go, if not into the workdir; also gs://bucket/run.

    Returns:
      (final state on the host, all records of metrics.jsonl).

    Raises:
      DropbnError: anything in the config that does not fit, before anything is written; a workdir of
        another run, of a run under way, or of one whose checkpoints or records are gone; checkpoints that
        cannot be read, of another network or of other data; something that cannot be written; what is not
        finite any more: the first layer and step where it was not.
      Preempted: SIGTERM came; the state was saved.
    """
    dataset = dataset or data.load(config.data)
    return run_plan(make_plan(config, dataset), directory, dataset, checkpoint_dir)


def run_plan(
    plan: Plan, directory, dataset: data.Dataset, checkpoint_dir: str = ""
) -> tuple[steps.TrainState, list[dict]]:
    """`train_and_evaluate` of a config that is resolved."""
    with Progress(_headline(plan, dataset), plan.total_steps, plan.batch_size) as progress:
        [outcome] = train_together([plan], [directory], [dataset], progress, checkpoint_dir)
    if isinstance(outcome, DropbnError):
        raise outcome
    return outcome, workdir.read_metrics(directory)


def train_together(
    plans: list[Plan],
    directories: list,
    datasets: list[data.Dataset],
    progress,
    checkpoint_dir: str = "",
) -> list[steps.TrainState | DropbnError]:
    """Trains runs that stand at the same step, by one compiled program, and keeps each in its workdir.

    Args:
      plans: one for each run, all of one `structure`: they differ in seed, noise amount, learning rate and
        the choice of training images alone. The first one's layout has one device for each run, or all
        devices share a single run.
      directories: their workdirs.
      datasets: their data.
      progress: shows the runs; it has the methods of `dropbn.train.progress.Progress`.
      checkpoint_dir: of a single run; see `train_and_evaluate`.

    Returns:
      For each run its final state on the host, or the DropbnError that ended it; the others go on without
      it. Any other error ends them all.
    """
    outcomes = [None] * len(plans)
    with contextlib.ExitStack() as stack:
        opened = {}
        for i, (plan, directory, dataset) in enumerate(zip(plans, directories, datasets, strict=True)):
            try:
                run = runs.opened(plan, directory, checkpoint_dir, dataset, progress)
                opened[i] = stack.enter_context(run)
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
    return outcomes


def _train(together, datasets, progress):
    """Trains opened runs to the end; each keeps its state or its failure."""
    plan = together[0].plan
    layout = plan.layout
    step = saved = together[0].step
    progress.resume(step)
    feed = feeds.create([run.plan for run in together], datasets)
    program = programs.create(plan, feed)
    state = layout.put([run.state for run in together])
    hyper = layout.put([_hyper(run.plan, plan) for run in together])
    measured = {
        "train": [dataset.plain(plan.eval_examples) for dataset in datasets],
        "test": [dataset.test for dataset in datasets],
    }
    if datasets[0].validation:
        measured["validation"] = [dataset.validation for dataset in datasets]
    inputs = None  # of the epoch under way
    with preemption.watched(shared=layout.processes > 1) as told:
        while step < plan.total_steps and not all(run.failure for run in together):
            epoch, done = divmod(step, plan.steps_per_epoch)
            epoch_end = min(step - done + plan.steps_per_epoch, plan.total_steps)
            if inputs is None:
                inputs = feed.train_inputs(epoch, range(done, done + epoch_end - step))
                timed, seconds = 0, 0.0
            look = min(epoch_end, saved + plan.checkpoint_every, step + plan.log_every)
            taken = itertools.islice(inputs, look - step)
            state, sums, took, stopped = _train_steps(
                program.train, state, taken, hyper, step, told, progress
            )
            again = functools.partial(feed.train_inputs, epoch, range(done, done + len(sums)))
            step, timed, seconds = step + len(sums), timed + len(sums), seconds + took
            _look(together, program, layout, state, sums, hyper, again)
            if step == epoch_end:
                inputs = None
                found = {name: _evaluate(program, feed, state, splits) for name, splits in measured.items()}
                found = {name: layout.take(sums, len(together)) for name, sums in found.items()}
                for i, run in enumerate(together):
                    sums = {name: of_runs[i] for name, of_runs in found.items()}
                    _end_epoch(run, sums, measured, step / plan.steps_per_epoch, timed / seconds, progress)
            # It is saved where the next occasion would come too late.
            wait = plan.steps_per_epoch if step == epoch_end else 1
            if stopped or step == plan.total_steps or step + wait - saved > plan.checkpoint_every:
                for run in together:
                    if not run.failure:
                        run.save()
                saved = step
            if stopped:
                raise Preempted(f"stopped by SIGTERM at step {step} of {plan.total_steps}, saved")


def _look(together, program, layout, state, sums, hyper, again):
    """Hands each run what its steps have brought; where that is not finite, finds out where it began.

    `again` gives the inputs of these steps once more.
    """
    states, sums = layout.take(state, len(together)), layout.take(sums, len(together))
    for i, run in enumerate(together):
        if not run.failure and not run.look(states[i], sums[i]):
            before = [run.state for run in together]
            found = divergence.locate(program, layout, before, again(), hyper, i)
            run.failure = run.diverged(*(found or (int(states[i].step), "the loss")))


def _hyper(plan, first):
    rate, base = plan.learning_rate, first.learning_rate
    scale = 1.0 if rate == base else rate / base
    return steps.Hyper(plan.seed, plan.architecture.amount, scale)


def _headline(plan, dataset):
    network = plan.architecture
    devices = plan.layout.devices
    devices = f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
    return (
        f"{network.name} on {plan.config.data.name}: {dataset.train.num_examples} training images, "
        f"{plan.total_steps} steps of {plan.batch_size} on {devices}\n"
        f"blocks {network.block}, head {network.head}; drop is {network.noise} {network.amount:g}"
    )


def _train_steps(train, state, inputs, hyper, step, told, progress):
    """Takes steps until the inputs end or SIGTERM comes.

    Returns (state, their sums on the devices, seconds they took with compilation left out, whether SIGTERM
    came).
    """
    sums, stopped = [], False
    started = time.monotonic()
    for given in inputs:
        state, new = train(state, given, hyper)
        sums.append(new)
        if len(sums) == 1:
            jax.block_until_ready(new)  # The first step may compile: the others' time stands for it.
            compiled = time.monotonic()
        progress.step(sums)
        if stopped := told(step + len(sums)):
            break
    jax.block_until_ready(sums)
    seconds = time.monotonic() - (compiled if len(sums) > 1 else started)
    return state, sums, seconds * len(sums) / max(len(sums) - 1, 1), stopped


def _evaluate(program, feed, state, splits):
    return [program.evaluate(state, program.batch(inputs)) for inputs in feed.eval_inputs(*splits)]


def _end_epoch(run, sums, measured, epoch, steps_per_second, progress):
    """Records an epoch of a run that has not failed, and does not fail now."""
    if run.failure:
        return
    for name, (split, *_) in measured.items():
        counted = sum(int(part["count"]) for part in sums[name])
        assert counted == split.num_examples, f"{counted} images of {name} were counted"
    try:
        progress.epoch(run.record(epoch, sums, steps_per_second))
    except DropbnError as error:
        run.failure = error
