"""Evaluation of a run: the table of modes, the flips, the shift of every BN layer."""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dropbn import checkpoint, data, feeds, keys, losses, models, modes, parallel, shift, steps, workdir
from dropbn.data import sampling
from dropbn.plan import abstract_state, make_plan
from dropbn.results import Result


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
      modes: accuracy and loss for dropout {off, on} x BN {running, batch} x {train, test} images.
      flips: share of the training images that are right in train mode (on, batch) and wrong in test mode
        (off, running), as Li et al. (2018) Fig. 6 shows some; a reconstruction is right where it explains
        more than half of the variance.
      shift: the shift of every BN layer, exact population moments.
      shift_li2018: the same by the estimator of Li et al. (2018, section 4).
      config: the run's config.
      checkpoint_step: the step evaluated.
    """

    modes: Result
    flips: float
    shift: shift.Shift
    shift_li2018: shift.Shift
    config: dict
    checkpoint_step: int


def evaluate(directory, which: str | int = "latest") -> Evaluation:
    """Evaluates the run in a workdir and writes eval/report.json, shift.csv and shift.png there.

    Images are not augmented, and BN statistics of a batch cover as many images as in training
    (`bn.group_size`, or the batch size), so that flipping dropout alone, or BN's source alone, isolates
    one cause.

    Args:
      directory: the workdir.
      which: checkpoint: "latest", "best" or a step.

    Raises:
      DropbnError: no run or no such checkpoint there, or one that does not fit its config.
    """
    config = workdir.read_config(directory)
    dataset = data.load(config.data)
    plan = make_plan(config, dataset)
    directory = pathlib.Path(directory)
    with checkpoint.manager(directory / "checkpoints", read_only=True) as checkpoints:
        state = checkpoint.restore(checkpoints, abstract_state(config, dataset, plan), which)

    table, flips = mode_table(config, dataset, state)
    found = Evaluation(
        table,
        flips,
        measure_shift(config, dataset, state),
        measure_shift(config, dataset, state, "li2018"),
        config.to_dict(),
        int(state.step),
    )
    to = directory / "eval"
    to.mkdir(exist_ok=True)
    report = {k: v.rows if isinstance(v, Result) else v for k, v in found._asdict().items()}
    (to / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    found.shift.to_csv(to / "shift.csv")
    found.shift.plot(to / "shift.png", label=directory.name)
    return found


def measure_shift(config, dataset: data.Dataset, state: steps.TrainState, estimator="pooled") -> shift.Shift:
    """The shift on training images: plain ones for "pooled", one augmented epoch for "li2018".

    Batches of "li2018" have as many images as a statistic of training. A network without BN has no rows.
    """
    if not state.batch_stats:
        return shift.Shift([], "No batch normalization, no shift")
    if estimator == "pooled":
        split = dataset.plain(config.eval.train_examples)
        batches = sampling.plain_batches(split, config.batch_size, dataset.mean, dataset.std)
    else:
        batches = _augmented_epoch(config, dataset)
    return shift.measure(models.create(config.model), state.variables, batches, estimator=estimator)


def mode_table(config, dataset: data.Dataset, state: steps.TrainState) -> tuple[Result, float]:
    """The table of modes and the flips; see `Evaluation`."""
    model_config = config.model.copy_and_resolve_references()
    model_config.bn.group_size = 0  # Batches are cut to the size of a group, so each is one group.
    model, task = models.create(model_config), losses.TASKS[config.task]
    batch_size = config.model.bn.group_size or config.batch_size
    splits = {"train": dataset.plain(config.eval.train_examples), "test": dataset.test}
    rows, right = [], {}
    for noise_on, source in itertools.product((False, True), ("running", "batch")):
        mode = modes.Mode(noise_on, source, update=False)
        pad_to = batch_size if source == "running" else 0  # A padded batch would have other statistics.
        predict = _predictor(model, mode, state, config.seed, pad_to)
        for name, split in splits.items():
            # The images of a batch must not be of one class.
            order = sampling.epoch_order(config.seed, 0, split.num_examples)
            batches = sampling.plain_batches(split, batch_size, dataset.mean, dataset.std, order)
            found = [task(predict(batch["image"], i), batch) for i, batch in enumerate(batches)]
            loss, correct = (np.concatenate([part[key] for part in found]) for key in ("loss", "correct"))
            right[noise_on, source, name] = correct > 0.5
            rows.append(
                {
                    "dropout": "on" if noise_on else "off",
                    "batch_norm": source,
                    "split": name,
                    "accuracy": float(correct.mean()),
                    "loss": float(loss.mean(dtype=np.float64)),
                }
            )
    flipped = right[True, "batch", "train"] & ~right[False, "running", "train"]
    return Result(rows, "Accuracy and loss by mode (no augmentation)"), float(flipped.mean())


def _predictor(model, mode, state, seed, pad_to):
    """A function of (images, batch index) that returns the logits in a mode.

    Batches are padded to `pad_to` images, which saves a compilation; 0 leaves them as they are.
    """

    @jax.jit
    def logits(variables, images, key):
        output, _ = modes.apply(model, variables, images, mode=mode, rngs={"dropout": key})
        return output.astype(jnp.float32)

    def predict(images, index):
        padding = np.repeat(images[-1:], pad_to - len(images), axis=0) if pad_to else images[:0]
        padded = np.concatenate([images, padding])
        return np.asarray(logits(state.variables, padded, keys.key(seed, "noise", index)))[: len(images)]

    return predict


def _augmented_epoch(config, dataset) -> Iterator[jax.Array]:
    config = config.copy_and_resolve_references()
    config.batch_size = config.model.bn.group_size or config.batch_size
    devices = jax.local_devices()[:1]
    feed = feeds.create(config, dataset, devices)
    batch = parallel.on_each(feed.train_batch, devices, in_axes=(0, None, None))
    for step, inputs in enumerate(
        feed.train_inputs(0, range(dataset.train.num_examples // config.batch_size))
    ):
        yield jax.tree.map(lambda leaf: leaf[0], batch(inputs, step, config.seed))
