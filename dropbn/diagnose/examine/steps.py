"""`examine`: the steps of an examination, one after another."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from dropbn.diagnose import entry, gap, lint, shift
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.examine import inventory, retraining
from dropbn.diagnose.examine.examination import Examination
from dropbn.diagnose.gap import Gap
from dropbn.diagnose.shift import Shift
from dropbn.errors import DropbnError
from dropbn.results import Result

STEPS = (
    "finding noise and batch normalizations",
    "predicting the shift",
    "measuring the shift",
    "splitting the gap and trying remedies",
    "predicting what training anew would change",
)


@entry.holds_state
def examine(
    model: ModelOrPair,
    variables: dict | None,
    train_batches: Iterable | None = None,
    test_batches: Iterable | None = None,
    *,
    example: Any = None,
    labels: Any = None,
    task: str | None = None,
    score: Callable | None = None,
    watch: Callable[[str], None] = lambda step: None,
    **call: Any,
) -> Examination:
    """Examines a model: finds its noise and batch normalizations, says what is wrong and what helps.

    Ctrl-C ends the step that is under way; what was found before is kept.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test).
      variables: its trained variables; they are not changed. With None, only lint is done. An NNX model holds
        them: leave them out.
      train_batches: as in training: of the same size, augmented and shuffled. Without them the shift is
        predicted for inputs that are unit Gaussian, and not measured.
      test_batches: with labels, of the same size, not augmented. Without them no gap is split and no remedy
        is tried.
      example: inputs of the model, of which only shapes and types matter, in the place of batches.
      labels, task, score: see `dropbn.diagnose.gap.explain`.
      watch: called with the name of each step as it begins.
      **call: how the model is called; see `dropbn.diagnose.call.Call`.

    Returns:
      An `Examination`. rich prints it; `dropbn.page.examination` draws it.

    Raises:
      DropbnError: the model cannot be traced with these batches. What only one step refuses is in `skipped`.
    """
    if train_batches is None and example is None:
        raise DropbnError("Give batches, or example= with inputs of the model.")
    data = train_batches
    if data is None:  # One batch, all of which are inputs.
        data, call = [jax.tree.map(_gaussian, example)], {**call, "inputs": lambda batch: batch}
    called, variables = entry.model_of(model, variables, call)
    watch(STEPS[0])
    train = Batches(data, called.call.inputs, labels)
    args, kwargs = called.arguments(train.inputs(train.first))
    known = called.shapes(args, kwargs) if variables is None else variables
    layers = called.layers_of(known, args, kwargs)
    named = {**call, "kwargs": {**call.get("kwargs", {}), **kwargs}}
    found: dict[str, Any] = {"lint": lint.check(model, *args, variables=variables, **named)}
    untrained = "No variables were given." * (variables is None)
    without = untrained or "No batches were given." * (train_batches is None)
    untested = without or "No test batches were given." * (test_batches is None)

    def predicted() -> Shift:
        return shift.predict(model, variables, train, **call)

    def measured() -> Shift:
        return shift.measure(model, variables, train, **call)

    def explained() -> Gap:
        given = {"labels": labels, "task": task, "score": score}
        return gap.explain(model, variables, train, test_batches, **given, **call)

    def retrained() -> Result:
        if "predicted" not in found:
            raise DropbnError("The shift is not predicted.")
        return retraining.compare(model, variables, train, layers, found["predicted"], **call)

    # What each of the STEPS finds, how, and why it is not done.
    steps: list[tuple[str, Callable[[], Any], str]] = [
        ("predicted", predicted, untrained),
        ("measured", measured, without),
        ("gap", explained, untested),
        ("retraining", retrained, untrained),
    ]
    skipped = {STEPS[number]: why_not for number, (*_, why_not) in enumerate(steps, 1) if why_not}
    for number, (name, step, why_not) in enumerate(steps, 1):
        if why_not:
            continue
        watch(STEPS[number])
        try:
            found[name] = step()
        except DropbnError as error:
            skipped[STEPS[number]] = str(error)
        except KeyboardInterrupt:
            skipped = dict.fromkeys(STEPS[number:], "Ctrl-C stopped it.") | skipped
            break
    return Examination(
        inventory.of(layers, known).rows,
        f"Examination of {called.name}",
        name=called.name,
        skipped=skipped,
        **found,
    )


def _gaussian(leaf):
    """Unit Gaussian values of the shape of an input; zeros of one that is no float."""
    drawn = np.random.default_rng(0).normal(size=leaf.shape)
    return np.asarray(drawn if np.issubdtype(leaf.dtype, np.floating) else 0 * drawn, leaf.dtype)
