"""Batches as users have them: arrays, tuples or dicts in anything that can be iterated."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dropbn.diagnose import call, given
from dropbn.errors import DropbnError


class Batches:
    """Batches that can be iterated again and again, and what the inputs and labels of a batch are.

    Attributes:
      first: the first batch.
    """

    def __init__(
        self, batches: Iterable, inputs: Any = None, labels: Any = None, *, once: bool = False
    ) -> None:
        """Prepares `batches`.

        Args:
          batches: an iterable of arrays, tuples or dicts. An iterator, such as a generator, is kept in memory
            unless `once`. For large data, give a list, a data loader, or an object whose `__iter__` starts
            anew.
          inputs: which part of a batch the model gets: a key, an index, an attribute or a function of the
            batch. By default it is the array itself, "image" of a dict, or the first element of a tuple.
          labels: likewise; by default "label" of a dict, or the second element of a tuple.
          once: whether the batches are iterated only once.

        Raises:
          DropbnError: not an iterable of batches, or an empty one.
        """
        if hasattr(batches, "shape") or isinstance(batches, (dict, str)) or not isinstance(batches, Iterable):
            raise DropbnError(
                f"Expected an iterable of batches, got {type(batches).__name__}: put a single batch in a "
                "list."
            )
        rest = iter(batches)
        self.first = next(rest, None)
        if self.first is None:
            raise DropbnError(
                "No batches were given: the iterable is empty, or an iterator whose batches are used up."
            )
        if rest is batches:
            batches = itertools.chain([self.first], rest)
        self._batches = batches if once or not isinstance(batches, Iterator) else list(batches)
        self._inputs, self._labels = inputs, labels
        self._number: int | None = None
        self._last = self.first

    def __iter__(self) -> Iterator:
        number = 0
        for batch in self._batches:
            yield batch
            number += 1
            self._last = batch
        if self._number not in (None, number):
            raise DropbnError(
                f"The batches ended early: {number} where an earlier pass had {self._number}. Give a list, "
                "or an iterable that starts anew each time."
            )
        self._number = number

    def parts(self, most: int) -> list["Batches"]:
        """Disjoint parts of nearly equal size that together hold all batches.

        Args:
          most: the number of parts. There are fewer if there are fewer batches, and none for one batch. A
            last batch of one example, which may have no statistics, does not become a part.
        """
        total = self._number or sum(1 for _ in self)
        last, first = (call.num_examples(self.inputs(batch)) for batch in (self._last, self.first))
        number = min(most, total - (last == 1 < first))
        parts = [_Part(self, first, number) for first in range(number)]
        return [Batches(part, self._inputs, self._labels) for part in parts] if number > 1 else []

    def inputs(self, batch: Any) -> Any:
        """What the model gets of a batch.

        Raises:
          DropbnError: the batch has no such part, or it is no array or tree of arrays with an example.
        """
        found = _part(batch, self._inputs, "image", 0, "inputs")
        given.check_inputs(found)
        return found

    def labels_or_none(self, batch: Any) -> np.ndarray | None:
        """The labels of a batch; None where it has none and `labels` was not given."""
        try:
            return np.asarray(self.labels(batch))
        except (DropbnError, IndexError):
            if self._labels is not None:
                raise
            return None

    def labels(self, batch: Any) -> Any:
        """The labels of a batch."""
        if hasattr(batch, "shape") and self._labels is None:
            raise DropbnError("These batches are arrays without labels: give (inputs, labels) pairs.")
        return _part(batch, self._labels, "label", 1, "labels")


@dataclasses.dataclass(frozen=True)
class _Part:
    """Every `number`-th batch, beginning with batch `first`."""

    batches: Batches
    first: int
    number: int

    def __iter__(self):
        return itertools.islice(self.batches, self.first, None, self.number)


def _part(batch, chosen, key, index, argument):
    if chosen is not None:
        return call.part(batch, chosen, argument, "a batch")
    if isinstance(batch, dict):
        if key not in batch:
            raise DropbnError(
                f"A batch has the keys {sorted(batch)}: say with {argument}= which one holds the {argument}."
            )
        return batch[key]
    if not isinstance(batch, (tuple, list)):
        return batch
    if index >= len(batch):
        raise DropbnError(
            f"A batch is a {type(batch).__name__} of {len(batch)}: give (inputs, labels), or say with "
            f"{argument}= where the {argument} are."
        )
    return batch[index]
