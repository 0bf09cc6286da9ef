"""Durations as a number and a unit: "164 epochs", "2000 steps", "640000 examples"."""

import math
import re

from dropbn.errors import DropbnError

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*(epoch|step|example)s?\s*")


def to_steps(duration: str, *, batch_size: int, num_examples: int) -> int:
    """A duration in training steps, to the nearest one.

    An epoch has floor(num_examples / batch_size) steps. The images that are left over fill no batch and are
    skipped; they are other ones in each epoch.

    Raises:
      DropbnError: anything but one non-negative number with one unit; more steps than int32 can count.
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
