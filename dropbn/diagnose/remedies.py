"""What can be done for a trained model without further training, and what each remedy brings on test images.

===========================  ==========================================================  ==============
remedy                       call                                                        needs
===========================  ==========================================================  ==============
recalibrated statistics      `recalibrate(model, variables, train_batches)`              BN
precise BN with noise        `recalibrate(..., recipe="precise_bn", noise=True)`         BN
batch statistics             `modes.apply` with noise off and BN with batch statistics   BN
mean of T draws              `uncertainty.sample(model, variables, test_batches,         noise
                             num_samples=T)`
===========================  ==========================================================  ==============

Each row comes from its call, with the other keywords given to `gap.explain`. It is compared with test mode
without a remedy.
"""

import dataclasses
import functools
from collections.abc import Callable

import rich.console

from dropbn.diagnose import recalibrate, uncertainty
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.interception import TEST, Mode
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.model import Model
from dropbn.diagnose.scores import Difference, Scorer, Scores, difference, parts_of
from dropbn.diagnose.tasks import Task
from dropbn.errors import DropbnError
from dropbn.results import Result

_BATCH_STATISTICS = Mode(noise=False, batch_norm="batch", update=False)
_PRECISE = {True: "precise BN with noise", False: "precise BN"}


@dataclasses.dataclass(frozen=True)
class Remedies(Result):
    """What each remedy brings.

    Each row holds, for test images:
      remedy: what is done.
      accuracy_before, accuracy: in test mode without and with the remedy.
      loss_before, loss: likewise.
      gain: the increase in accuracy, or the decrease in loss where the score gives no accuracy.
      error: the standard error of the gain (`dropbn.diagnose.scores`); None where it is not known.
      least: the lower 95 % bound of the gain (`scores.Difference.least`). If it is above 0, the gain is more
        than chance, even though several remedies were tried.
      call: the call that applies the remedy.

    Attributes:
      failed: remedy -> why it could not be tried.
    """

    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def __rich__(self) -> rich.console.RenderableType:
        # The evaluation grid already shows test mode without a remedy.
        return self.without("accuracy_before", "loss_before", "call").__rich__()

    @property
    def best(self) -> dict | None:
        """The row of the largest gain that exceeds its error; None if none does."""
        helps = [row for row in self.rows if row["error"] is not None and row["least"] > 0]
        return max(helps, key=lambda row: row["gain"], default=None)

    @property
    def advice(self) -> str:
        """Which remedy to take, in sentences."""
        sentences = [f"Could not try {name}: {why}" for name, why in self.failed.items()]
        unknown = [row for row in self.rows if row["error"] is None]
        if unknown:
            gains = ", ".join(f"{row['remedy']} {_gain(row)}" for row in unknown)
            sentences.append(
                f"One batch is too few to know the error of these gains on test images: {gains}."
            )
        known = [row for row in self.rows if row["error"] is not None]
        if best := self.best:
            sentences.append(
                f"The largest gain on test images that exceeds its error comes from {best['remedy']}: "
                f"{_gain(best)} ({_change(best)}). The call is {best['call']}."
            )
        elif known:
            gains = ", ".join(f"{row['remedy']} {_gain(row)}" for row in known)
            sentences.append(f"No remedy gains more than its error on test images: {gains}.")
        if not self.rows and not self.failed:
            sentences.append(
                "No remedy was tried: no BN takes statistics in training, and no noise was found."
            )
        return " ".join(sentences)


def compare(
    model: Model,
    variables: dict,
    train: Batches,
    test: Scorer,
    layers: Layers,
    num_samples: int,
    task: Task | None,
) -> Remedies:
    """Tries every remedy that fits the model.

    Args:
      model: a model and how it is called.
      variables: its trained variables; they are not changed.
      train: the training batches, from which statistics are taken.
      test: the scorer of the test images.
      layers: of the model.
      num_samples: the draws of `uncertainty.sample`; 0 for none.
      task: what the outputs are; None without draws.
    """
    has_noise = bool(layers.switched_noises)
    # remedy -> (its call, a function that scores it)
    tried: dict[str, tuple[str, Callable[[], Scores]]] = {}
    if layers.has_norm:
        precise = {"recipe": "precise_bn"} | ({"noise": True} if has_noise else {})
        for name, recipe in {"recalibrated statistics": {}, _PRECISE[has_noise]: precise}.items():
            options = "".join(f", {key}={value!r}" for key, value in recipe.items())
            call = f"recalibrate.recalibrate(model, variables, train_batches{options})"
            take = functools.partial(_recalibrated, model, variables, train, test, layers, recipe)
            tried[name] = call, take
        call = f"modes.apply(model, variables, x, mode=modes.{_BATCH_STATISTICS})"
        tried["batch statistics"] = call, lambda: test(variables, _BATCH_STATISTICS)[0]
    if has_noise and num_samples:
        call = f"uncertainty.sample(model, variables, test_batches, num_samples={num_samples})"
        draws = functools.partial(_sampled, model, variables, test, num_samples, task)
        tried[f"mean of {num_samples} draws"] = call, draws
    before, _ = test(variables, TEST)
    rows, failed = [], {}
    for name, (call, scores) in tried.items():
        try:
            rows.append(_row(name, call, before, scores(), len(tried)))
        except DropbnError as error:  # for example a dead layer, which has no statistics
            failed[name] = str(error)
    title = "What each remedy brings on test images (least: lower 95 % bound of the gain)"
    return Remedies(rows, title, failed)


def _recalibrated(model, variables, train, test, layers, recipe):
    """The scores with statistics taken again, also from each part of the training batches."""

    def scores(batches, rngs):
        new = recalibrate.take(model.with_rngs(rngs), variables, batches, **recipe)
        return test({**variables, "batch_stats": new.batch_stats}, TEST)[0], new.num_images

    rngs = model.rngs(layers)
    whole, images = scores(train, rngs)
    parts = [scores(part, keys) for part, keys in parts_of(train, rngs)]
    share = sum(of_part for _, of_part in parts) / max(len(parts), 1) / images
    return whole._replace(parts=tuple(part for part, _ in parts), share=share)


def _sampled(model, variables, test, num_samples, task):
    """The scores of the mean over draws of the noise."""
    found = uncertainty.draw(model, variables, test.batches, task, num_samples)
    return test.of_outputs(task.invert(found.mean))


def _row(name, call, before, after, tried):
    gained = difference(before, after, "correct") or difference(after, before, "loss")
    return {
        "remedy": name,
        "accuracy_before": before.mean("correct"),
        "accuracy": after.mean("correct"),
        "loss_before": before.mean("loss"),
        "loss": after.mean("loss"),
        "gain": gained.value,
        "error": gained.error,
        "least": gained.least(tried),
        "call": call,
    }


def _gain(row):
    return Difference(row["gain"], row["error"]).words("loss" if row["accuracy"] is None else "correct")


def _change(row):
    if row["accuracy"] is None:
        return f"loss {row['loss_before']:.3g} to {row['loss']:.3g}"
    return f"accuracy {row['accuracy_before']:.1%} to {row['accuracy']:.1%}"
