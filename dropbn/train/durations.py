"""Durations as a number and a unit: "164 epochs", "2000 steps", "640000 examples"."""

import math
import re

from dropbn.errors import DropbnError

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*(epoch|step|example)s?\s*")


def steps(duration: str, *, batch_size: int, num_examples: int) -> int:
    """A duration in training steps, to the nearest one.

    An epoch has floor(num_examples / batch_size) steps: the rest of an epoch's order, shorter than a
    batch, is left out and another one each epoch.

    Raises:
      DropbnError: anything but one non-negative number with one unit; two units at once are refused, and
        so are more steps than int32 counts.
    """
    match = _DURATION.fullmatch(duration)
    if not match:
        raise DropbnError(
            f"A duration is one number and one unit, '30 epochs', '2000 steps' or '64000 examples'; "
            f"got {duration!r}."
        )
    number, unit = float(match[1]), match[2]
    per_unit = {"epoch": num_examples // batch_size, "step": 1, "example": 1 / batch_size}[unit]
    if not number * per_unit < 2**31 - 1:
        raise DropbnError(f"A duration of {duration!r} is longer than {2**31 - 1} steps.")
    return math.floor(number * per_unit + 0.5)
