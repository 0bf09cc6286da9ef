"""What is measured of a trained state: the gap, the shift, new statistics, Monte Carlo dropout.

Training images are augmented as in training, and a batch has as many images as a BN statistic of training
covers (`bn.group_size`, or the batch size). So neither the shift nor another share of the gap contains what
augmentation changes. Augmentation has a share of its own, between these images and plain ones.
"""

import functools
import json

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from dropbn import data, keys, models
from dropbn.diagnose import gap, recalibrate, shift, uncertainty
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.linen import Model
from dropbn.diagnose.modes import TEST
from dropbn.diagnose.predictor import Predictor
from dropbn.diagnose.tasks import softmax
from dropbn.errors import DropbnError
from dropbn.results import Result
from dropbn.train import losses, steps
from dropbn.train.eval_batches import AsInTraining, augmented_epoch, images_of_a_statistic, plain


def explain_run(config: ConfigDict, dataset: data.Dataset, state: steps.TrainState) -> gap.Gap:
    """The gap between training and test mode, its causes and remedies; see `dropbn.diagnose.gap`."""
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


def measure_shift(
    config: ConfigDict, dataset: data.Dataset, state: steps.TrainState, estimator: str = "pooled"
) -> shift.Shift:
    """The shift of every BN layer; a network without BN has no rows.

    "pooled" takes `eval.train_examples` images. "li2018" takes an epoch, in batches of as many images as a
    statistic of training covers.
    """
    if not state.batch_stats:
        return shift.Shift([], "No batch normalization, no shift")
    pooled = estimator == "pooled"
    batches = AsInTraining(config, dataset) if pooled else augmented_epoch(config, dataset)
    return shift.measure(model_of_groups(config), state.variables, batches, estimator=estimator)


def recalibrate_run(
    config: ConfigDict, dataset: data.Dataset, state: steps.TrainState, recipe: str
) -> tuple[Result, dict]:
    """Scores in test mode before and after recalibration (Li et al. 2018, Table 3), and the new statistics.

    "dropout_off" takes `eval.train_examples` images, the recipes of the papers an epoch.

    Raises:
      DropbnError: a network without BN.
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


def sample_run(config: ConfigDict, dataset: data.Dataset, state: steps.TrainState, number: int) -> Result:
    """Accuracy, negative log-likelihood and calibration error on test images, in test mode and with samples.

    Raises:
      DropbnError: a task that does not classify, or a network without noise.
    """
    if config.task != "classify":
        raise DropbnError(
            f"Monte Carlo dropout needs probabilities of classes, but the task is {config.task!r}."
        )
    batches = plain(config, dataset, "test")
    rngs = {"dropout": keys.key(config.seed, "noise")}
    model = model_of_groups(config)
    found = uncertainty.sample(model, state.variables, batches, num_samples=number, rngs=rngs)
    _, logits, labels = _test_mode(config, dataset, state.variables, "test")
    rows = [
        {"prediction": name} | uncertainty.scores(probabilities, labels)
        for name, probabilities in (
            ("test mode", softmax(logits)),
            (f"mean of {number} samples", found.mean),
        )
    ]
    return Result(rows, "Test images, deterministic and by Monte Carlo dropout")


def model_of_groups(config: ConfigDict) -> nn.Module:
    """The network on one device, for batches of one group each: BN takes the whole batch.

    It is the same object for the same network, so that what was compiled for one measurement serves the next.
    """
    model_config = config.model.copy_and_resolve_references()
    model_config.bn.group_size = 0
    return _network(model_config.to_json(sort_keys=True))


@functools.lru_cache(maxsize=8)
def _network(model_config):
    return models.create(ConfigDict(json.loads(model_config)))


def _as_in_training(config, dataset):
    return AsInTraining(config, dataset, images_of_a_statistic(config))


def _test_mode(config, dataset, variables, split):
    """({"accuracy", "loss"}, outputs, labels) in test mode: test images, or "train" ones as in training."""
    test = split == "test"
    batches = Batches(plain(config, dataset, split) if test else _as_in_training(config, dataset))
    predict = Predictor(Model.of(model_of_groups(config)), TEST)
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
