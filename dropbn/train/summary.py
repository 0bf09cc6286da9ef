"""The summary that a study keeps of a finished run.

Little of it has to be compiled, and nothing again for equal models.
"""

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from dropbn import data
from dropbn.data import sampling
from dropbn.diagnose import recalibrate, shift, theory
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.linen import Model
from dropbn.diagnose.modes import TEST
from dropbn.diagnose.predictor import Predictor
from dropbn.errors import DropbnError
from dropbn.train import losses, steps
from dropbn.train.eval_batches import AsInTraining, augmented_epoch

# The recipes by which statistics are taken again: both readings of Li et al., and the population's.
RECIPES = ("li2018_torch", "li2018", "dropout_off")


def summarize(
    config: ConfigDict, dataset: data.Dataset, state: steps.TrainState, records: list[dict], model: nn.Module
) -> dict:
    """Summarizes a run.

    Args:
      config: the run's.
      dataset: its data.
      state: its final state.
      records: those of its metrics.jsonl.
      model: the network on one device, the same object for runs that differ in numbers alone.

    Returns:
      accuracy, loss: of the test images after the last epoch; where there are validation images, after the
        epoch with the best validation accuracy.
      train_accuracy, train_accuracy_test_mode: of the last epoch.
      recalibrated: {recipe: accuracy of the test images} with statistics taken again by `RECIPES` at the end
        of training.
      correct: {statistics: bool (images,)}, whether each test image is right at the end of training, for
        "running" statistics and those of each recipe. "running" is left out where `accuracy` is that of
        another epoch. A task that does not classify has {}.
      shift, shift_li2018: rows of `shift.measure` by both estimators, on images as training saw them:
        `eval.train_examples` of them, and an epoch.
      weights: rows of `theory.weight_statistics`.
      checkpoint_step: the step of the state.
      not_measured: why a network with BN has no shift or recalibration, such as a layer whose input does not
        vary.

      Without BN the lists of shifts and `recalibrated` are empty.
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
    for recipe in RECIPES:
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
    predict = Predictor(Model.of(model), TEST)
    return np.concatenate([task(outputs, batch)["correct"] for batch, outputs in predict(variables, batches)])
