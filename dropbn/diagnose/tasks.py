"""What a model is for: how its outputs are scored against labels and turned into predictions.

==============  =============================================  ==========================================
task            outputs                                        labels
==============  =============================================  ==========================================
`classify`      logits (examples, ..., classes)                (examples, ...) of classes, or one-hot
`binary`        a logit: (examples,) or (examples, 1)          0 or 1, in either shape
`multilabel`    logits (examples, ..., labels)                 0 or 1, in the same shape
`regress`       values (examples, ...)                         values, in the same shape
==============  =============================================  ==========================================

Positions between examples and classes, such as pixels or tokens, are averaged in an example's scores.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dropbn.errors import DropbnError, unknown


class Task(NamedTuple):
    """A kind of outputs and labels.

    Attributes:
      score: (outputs, labels) -> {"loss", "correct"}, each (examples,), "correct" being a share; a regression
        has no "correct".
      predict: outputs -> what is averaged over draws: probabilities (examples, ..., classes), or values.
      invert: averaged predictions -> outputs that score as they do.
      has_classes: whether predictions are probabilities.
    """

    score: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    predict: Callable[[np.ndarray], np.ndarray]
    invert: Callable[[np.ndarray], np.ndarray]
    has_classes: bool = True


def find(name: str | None, outputs: np.ndarray | jax.ShapeDtypeStruct, labels: np.ndarray | None) -> Task:
    """The task of this name; without a name, the only one that fits the outputs and labels.

    Args:
      name: a key of `TASKS`, or None.
      outputs: of a batch; only the shape matters.
      labels: of the batch. Without labels, outputs (examples, classes) are taken for `classify`.

    Raises:
      DropbnError: an unknown name; outputs and labels that do not decide.
    """
    if name is not None:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
        return TASKS[name]
    found = _inferred(outputs, labels)
    if found is None:
        labels_are = "no labels" if labels is None else f"{labels.dtype} labels of shape {labels.shape}"
        raise DropbnError(
            f"Outputs of shape {outputs.shape} and {labels_are} do not tell what the model is for: give "
            f"task= ({', '.join(TASKS)}), labels=, or a score= of your own."
        )
    return TASKS[found]


def fits(name: str | None, outputs: jax.ShapeDtypeStruct, labels: np.ndarray | None) -> bool:
    """Whether outputs of this shape can be scored against the labels, by this task or by the inferred one."""
    if labels is None or not jax.numpy.issubdtype(outputs.dtype, np.floating):
        return False
    task = TASKS.get(name or _inferred(outputs, labels) or "")
    try:
        return task is not None and bool(task.score(np.zeros(outputs.shape, np.float32), labels))
    except DropbnError:
        return False


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis of (examples, ..., classes), in float64.

    Raises:
      DropbnError: fewer than two axes or classes, or values that are not finite.
    """
    logits = np.asarray(logits)
    _refuse_not_finite(logits)
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise DropbnError(
            f"Probabilities want logits (images, ..., classes) of two classes or more; these outputs have "
            f"shape {logits.shape}. One logit each is task='binary'."
        )
    p = np.exp(logits - np.max(logits, -1, keepdims=True), dtype=np.float64)
    return p / p.sum(-1, keepdims=True)


def _inferred(outputs, labels):
    if labels is None:
        return "classify" if outputs.ndim == 2 and outputs.shape[-1] > 1 else None
    several, whole = outputs.ndim >= 2 and outputs.shape[-1] > 1, labels.dtype.kind in "biu"
    if several and whole and labels.shape == outputs.shape[:-1]:
        return "classify"
    if several and labels.shape == outputs.shape and _is_binary(labels):
        return "classify" if np.all(labels.sum(-1) == 1) else "multilabel"
    if whole and labels.size == outputs.size == len(outputs) and _is_binary(labels):
        return "binary"
    if labels.dtype.kind == "f" and labels.size == outputs.size and not _is_binary(labels):
        return "regress"
    return None


def _classify(outputs, labels):
    p = softmax(outputs)
    if labels.shape == p.shape and _is_binary(labels) and np.all(labels.sum(-1) == 1):
        labels = labels.argmax(-1)
    numbers = labels.astype(int)
    fits = labels.shape == p.shape[:-1] and labels.size and np.all(labels == numbers)
    if not (fits and 0 <= labels.min() <= labels.max() < p.shape[-1]):
        raise _misfit("classify", outputs, labels)
    chosen = np.take_along_axis(p, numbers[..., None], -1)[..., 0]
    return _scores(-np.log(np.maximum(chosen, 1e-300)), p.argmax(-1) == numbers)


def _binary(outputs, labels):
    if outputs.size != len(outputs) or labels.size != outputs.size or not _is_binary(labels):
        raise _misfit("binary", outputs, labels)
    return _multilabel(outputs.reshape(-1, 1), labels.reshape(-1, 1))


def _multilabel(outputs, labels):
    if labels.shape != outputs.shape or not _is_binary(labels):
        raise _misfit("multilabel", outputs, labels)
    _refuse_not_finite(outputs)
    logits, labels = np.asarray(outputs, np.float64), labels.astype(bool)
    loss = np.logaddexp(0, np.where(labels, -logits, logits))  # -log sigmoid(+-logit)
    return _scores(loss, (logits > 0) == labels)


def _regress(outputs, labels):
    if labels.size != outputs.size or len(labels) != len(outputs):
        raise _misfit("regress", outputs, labels)
    _refuse_not_finite(outputs)
    labels = np.asarray(labels, np.float64).reshape(outputs.shape)
    return {"loss": of_examples(np.square(np.asarray(outputs, np.float64) - labels))}


def _two_classes(outputs):
    _refuse_not_finite(outputs)
    logits = np.asarray(outputs, np.float64)
    return softmax(np.stack([np.zeros_like(logits), logits], -1))


def _one_logit(outputs):
    if outputs.size != len(outputs):
        raise DropbnError(
            f"task='binary' wants one logit for each example, got outputs of shape {outputs.shape}."
        )
    return _two_classes(outputs.reshape(-1))


def _values(outputs):
    _refuse_not_finite(outputs)
    return np.asarray(outputs, np.float64)


def _log(p):
    return np.log(np.maximum(p, np.finfo(np.float32).tiny))


def _log_odds(p):
    return _log(p[..., 1]) - _log(p[..., 0])


TASKS = {
    "classify": Task(_classify, softmax, _log),
    "binary": Task(_binary, _one_logit, _log_odds),
    "multilabel": Task(_multilabel, _two_classes, _log_odds),
    "regress": Task(_regress, _values, _values, has_classes=False),
}


def _scores(loss, correct):
    return {"loss": of_examples(loss), "correct": of_examples(correct)}


def of_examples(values: np.ndarray) -> np.ndarray:
    """Means over all axes but the first; of one axis the values themselves."""
    return values.reshape(len(values), -1).mean(-1) if values.ndim > 1 else values


def _is_binary(labels):
    return np.isin(labels, (0, 1)).all()


def _misfit(task, outputs, labels):
    span = f" from {labels.min()} to {labels.max()}" if labels.size else ""
    return DropbnError(
        f"Outputs of shape {outputs.shape} and labels of shape {labels.shape}{span} do not fit "
        f"task={task!r}: give labels= or outputs=, another task=, or a score= of your own."
    )


def _refuse_not_finite(outputs):
    if not np.all(np.isfinite(outputs)):
        raise DropbnError(
            f"Outputs of shape {np.shape(outputs)} are not finite: look for NaN in the batches or weights."
        )
