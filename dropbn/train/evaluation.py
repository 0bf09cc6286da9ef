"""Evaluation of a run: the evaluation grid, the causes of the gap, the shift of every BN layer, repairs."""

import functools
import json
import pathlib
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dropbn import data, keys, models
from dropbn.data import sampling
from dropbn.diagnose import gap, modes, recalibrate, shift, theory, uncertainty
from dropbn.diagnose.batches import Batches
from dropbn.errors import DropbnError, unknown
from dropbn.results import Result
from dropbn.train import checkpoint, losses, steps, workdir
from dropbn.train.eval_batches import AsInTraining, augmented_epoch, images_of_a_statistic, plain
from dropbn.train.plan import abstract_state, make_plan


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
      gap: accuracy and loss for noise {off, on} x BN {running, batch, converged, recalibrated} x
        {train, test} images, the shares of the gap, what each remedy brings, and the flipped images.
      shift: the shift of every BN layer, exact population moments.
      shift_li2018: the same by the estimator of Li et al. (2018, section 4).
      recalibrated: accuracy and loss in test mode before and after recalibration, where it was asked for.
      sampled: scores of the test images in test mode and with the noise kept on, where it was asked for.
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
    directory, which: str | int = "latest", recalibration: str = "", mc_samples: int = 0
) -> Evaluation:
    """Evaluates the run in a workdir and writes to its eval/: report.json, shift.csv, shift.png, flips.png.

    Training images are augmented as in training, and BN statistics of a batch cover as many images as in
    training (`bn.group_size`, or the batch size). So neither the shift nor a share of the gap contains what
    augmentation changes; that has a share of its own, between these images and plain ones.

    Args:
      directory: the workdir.
      which: checkpoint: "latest", "best" or a step.
      recalibration: a recipe of `dropbn.diagnose.recalibrate`; its statistics are written to
        eval/batch_stats-RECIPE.npz, and the checkpoint stays as it is.
      mc_samples: draws of Monte Carlo dropout; 0 for none.

    Raises:
      DropbnError: no run or no such checkpoint there, or one that does not fit its config; a recipe for a
        network without BN; samples of a network without noise, or that does not classify.
    """
    config = workdir.read_config(directory)
    if recalibration and recalibration not in recalibrate.RECIPES:
        raise unknown("recipe", recalibration, recalibrate.RECIPES)
    dataset = data.load(config.data)
    plan = make_plan(config, dataset)
    directory = pathlib.Path(directory)
    with checkpoint.manager(workdir.checkpoints(directory), read_only=True) as checkpoints:
        state = checkpoint.restore(checkpoints, abstract_state(plan, dataset), which)

    recalibrated = sampled = batch_stats = None
    if recalibration:
        recalibrated, batch_stats = recalibrate_run(config, dataset, state, recalibration)
    if mc_samples:
        sampled = sample_run(config, dataset, state, mc_samples)
    found = Evaluation(
        explain_run(config, dataset, state),
        measure_shift(config, dataset, state),
        measure_shift(config, dataset, state, "li2018"),
        recalibrated,
        sampled,
        config.to_dict(),
        int(state.step),
    )
    to = directory / "eval"
    with workdir.writing(directory):
        to.mkdir(exist_ok=True)
        if recalibration:
            flat = {"/".join(path): leaf for path, leaf in flatten_dict(batch_stats).items()}
            np.savez(to / f"batch_stats-{recalibration}.npz", **flat)
        workdir.replace(to / "report.json", json.dumps(_report(found), indent=1) + "\n")
        found.shift.to_csv(to / "shift.csv")
        found.shift.plot(to / "shift.png", label=directory.name)
        found.gap.plot(to / "flips.png")
    return found


def read_report(directory) -> dict:
    """What `evaluate` has written to eval/report.json in a workdir."""
    return json.loads((pathlib.Path(directory) / "eval" / "report.json").read_text())


# The recipes by which a study takes statistics again: Li et al.'s, by both readings, and the population's.
SUMMARY_RECIPES = ("li2018_torch", "li2018", "dropout_off")


def summarize(config, dataset: data.Dataset, state: steps.TrainState, records: list[dict], model) -> dict:
    """What a study keeps of a finished run; little of it has to be compiled, and nothing for equal models.

    Args:
      config: of the run.
      dataset: its data.
      state: its final state.
      records: of its metrics.jsonl.
      model: the network on one device, the same object for runs that differ in numbers alone.

    Returns:
      accuracy, loss: of the test images after the last epoch, or after that of the best validation accuracy.
      train_accuracy, train_accuracy_test_mode: of the last epoch.
      recalibrated: {recipe: accuracy of the test images}, with statistics taken again by `SUMMARY_RECIPES` at
        the end of training.
      correct: whether each test image is right at the end of training, bool (images,), by what the statistics
        are: "running" and these recipes. Without "running" where another epoch's accuracy is given; {} of a
        task that does not classify.
      shift, shift_li2018: rows of `shift.measure` by both estimators, on images as training saw them (for
        the former `eval.train_examples` of them); weights: of `theory.weight_statistics`.
        Without BN the lists and `recalibrated` are empty.
      not_measured: why a network with BN has none of them, such as a layer whose input does not vary.
    """
    chosen_by = "validation/accuracy" if "validation/accuracy" in records[-1] else "step"
    final = max(records, key=lambda record: record[chosen_by])
    summary = {
        "accuracy": final["test/accuracy"],
        "loss": final["test/loss"],
        "train_accuracy": records[-1]["train/accuracy"],
        "train_accuracy_test_mode": records[-1]["train/accuracy_test_mode"],
        "recalibrated": {},
        "correct": {},
        "shift": [],
        "shift_li2018": [],
        "weights": theory.weight_statistics(state.params).rows,
        "checkpoint_step": int(state.step),
    }
    if config.task == "classify" and final is records[-1]:
        summary["correct"]["running"] = _correct(config, dataset, state.variables, model)
    if not state.batch_stats:
        return summary
    try:
        _summarize_norms(summary, model, config, dataset, state)
    except DropbnError as error:  # Such as a dead layer: the run's accuracy is a result all the same.
        summary["not_measured"] = str(error)
    return summary


def _summarize_norms(summary, model, config, dataset, state):
    # Plain images would add the shift of augmentation (black borders) to that of the noise.
    seen = AsInTraining(config, dataset)
    summary["shift"] = shift.measure(model, state.variables, seen).rows
    summary["shift_li2018"] = shift.measure(
        model, state.variables, augmented_epoch(config, dataset), estimator="li2018"
    ).rows
    for recipe in SUMMARY_RECIPES:
        batches = seen if recipe == "dropout_off" else augmented_epoch(config, dataset)
        found = recalibrate.recalibrate(model, state.variables, batches, recipe)
        right = _correct(config, dataset, {**state.variables, "batch_stats": found.batch_stats}, model)
        summary["recalibrated"][recipe] = float(right.mean(dtype=np.float64))
        if right.dtype == bool:
            summary["correct"][recipe] = right


def _correct(config, dataset, variables, model):
    """The task's score of every test image in test mode, in the dataset's order."""
    images = sampling.PlainBatches(dataset.test, config.batch_size, dataset.mean, dataset.std)
    batches, task = Batches(images), losses.TASKS[config.task]
    predict = modes.Predictor(model, modes.TEST)
    return np.concatenate([task(outputs, batch)["correct"] for batch, outputs in predict(variables, batches)])


def _report(found):
    """What report.json holds: rows of every table."""
    report = {"evaluation_grid": found.gap.rows, "gap": found.gap.shares.rows}
    report |= {"remedies": found.gap.remedies.rows, "advice": found.gap.advice}
    report |= {"flips": found.gap.flips.share, "flipped_images": found.gap.flips.rows}
    report |= {key: getattr(found, key).rows for key in ("shift", "shift_li2018")}
    report |= {key: getattr(found, key).rows for key in ("recalibrated", "sampled") if getattr(found, key)}
    return report | {"config": found.config, "checkpoint_step": found.checkpoint_step}


def measure_shift(config, dataset: data.Dataset, state: steps.TrainState, estimator="pooled") -> shift.Shift:
    """The shift on images as in training: `eval.train_examples` of them, for "li2018" those of an epoch.

    Batches of "li2018" have as many images as a statistic of training. A network without BN has no rows.
    """
    if not state.batch_stats:
        return shift.Shift([], "No batch normalization, no shift")
    seen = AsInTraining(config, dataset)
    batches = seen if estimator == "pooled" else augmented_epoch(config, dataset)
    return shift.measure(model_of_groups(config), state.variables, batches, estimator=estimator)


def explain_run(config, dataset: data.Dataset, state: steps.TrainState) -> gap.Gap:
    """The evaluation grid, why its rows differ, and the flips; see `dropbn.diagnose.gap`."""
    seen = _as_in_training(config, dataset)
    return gap.explain(
        model_of_groups(config),
        state.variables,
        seen,
        plain(config, dataset, "test"),
        plain_batches=plain(config, dataset, "train") if seen.is_augmented else None,
        score=losses.TASKS[config.task],
        num_samples=10 if config.task == "classify" else 0,
        rngs={"dropout": keys.key(config.seed, "noise")},
    )


def recalibrate_run(
    config, dataset: data.Dataset, state: steps.TrainState, recipe: str
) -> tuple[Result, dict]:
    """Test mode before and after recalibration (Li et al. 2018, Table 3), and the new statistics.

    The images are those of training, augmented as there, in batches of as many as a statistic of training:
    `eval.train_examples` for "dropout_off", an epoch for the recipes of the papers.
    """
    if not state.batch_stats:
        raise DropbnError("This network has no batch normalization: there is nothing to recalibrate.")
    ours = recipe in ("dropout_off", "closed_form")
    batches = _as_in_training(config, dataset) if ours else augmented_epoch(config, dataset)
    rngs = {"dropout": keys.key(config.seed, "noise")}
    found = recalibrate.recalibrate(model_of_groups(config), state.variables, batches, recipe, rngs=rngs)
    rows = []
    for name, stats in (("before", state.batch_stats), (recipe, found.batch_stats)):
        for split in ("train", "test"):
            scores = _test_mode(config, dataset, {**state.variables, "batch_stats": stats}, split)[0]
            rows.append({"statistics": name, "data": split} | scores)
    return Result(rows, f"Test mode before and after. {found.title}"), found.batch_stats


def sample_run(config, dataset: data.Dataset, state: steps.TrainState, number: int) -> Result:
    """Accuracy, negative log-likelihood and calibration error on test images, without and with sampling."""
    if config.task != "classify":
        raise DropbnError(f"Monte Carlo dropout wants probabilities of classes; the task is {config.task!r}.")
    batches = plain(config, dataset, "test")
    rngs = {"dropout": keys.key(config.seed, "noise")}
    found = modes.sample(model_of_groups(config), state.variables, batches, num_samples=number, rngs=rngs)
    _, logits, labels = _test_mode(config, dataset, state.variables, "test")
    rows = [
        {"prediction": name} | uncertainty.scores(probabilities, labels)
        for name, probabilities in (
            ("test mode", uncertainty.softmax(logits)),
            (f"mean of {number} samples", found.mean),
        )
    ]
    return Result(rows, "Test images, deterministic and by Monte Carlo dropout")


def _test_mode(config, dataset, variables, split, model=None):
    """({"accuracy", "loss"}, outputs, labels) in test mode, of test images or of "train" as in training."""
    test = split == "test"
    batches = Batches(plain(config, dataset, split) if test else _as_in_training(config, dataset))
    predict = modes.Predictor(model or model_of_groups(config), modes.TEST)
    task = losses.TASKS[config.task]
    parts = [
        (outputs, batch["label"], task(outputs, batch)) for batch, outputs in predict(variables, batches)
    ]
    outputs, labels = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    scores = {
        name: float(np.concatenate([part[2][key] for part in parts]).mean(dtype=np.float64))
        for name, key in (("accuracy", "correct"), ("loss", "loss"))
    }
    return scores, outputs, labels


def _as_in_training(config, dataset):
    """In batches of as many images as a statistic of training."""
    return AsInTraining(config, dataset, images_of_a_statistic(config))


def model_of_groups(config) -> nn.Module:
    """The network on one device, for batches that are cut to the size of a group: each is one group.

    It is the same object for the same network, so that what was compiled for one evaluation serves the next.
    """
    model_config = config.model.copy_and_resolve_references()
    model_config.bn.group_size = 0
    return _network(model_config.to_json(sort_keys=True))


@functools.lru_cache(maxsize=8)
def _network(model_config):
    return models.create(ConfigDict(json.loads(model_config)))
