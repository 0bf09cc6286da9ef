"""How a case may end, and the judgement of a command that has ended."""

import re
from collections.abc import Callable
from typing import NamedTuple

SENTENCE, ACCEPTED, TRACEBACK, HANG, HOLE = "one sentence", "accepted rightly", "traceback", "hang", "hole"
ALL = (SENTENCE, ACCEPTED, TRACEBACK, HANG, HOLE)
BAD = (TRACEBACK, HANG, HOLE)
_STATUSES = (0, 1, 2, 3, 130, 143)  # docs/guarantees.md says what they mean.
_LONGEST = 3000  # characters that a sentence may have, with its list of known names


class Case(NamedTuple):
    """Something that goes wrong.

    Attributes:
      kind: what it is counted under.
      name: what it does.
      run: given an empty directory, returns (one of `ALL`, what was said).
    """

    kind: str
    name: str
    run: Callable


def judge(ended, may: str = "either") -> tuple[str, str]:
    """How a command has ended.

    Args:
      ended: what `doors.run` returned.
      may: "fail" if it must be refused, "pass" if it must be accepted, or "either".

    Returns:
      (one of `ALL`, what it said).
    """
    said = f"{' '.join(ended.words)[:300]}: status {ended.status}: {ended.errors or ended.output[-500:]}"
    if ended.hung:
        return HANG, said
    printed = ended.output + ended.errors
    if "Traceback (most recent call last)" in printed or ended.status not in _STATUSES:
        return TRACEBACK, said
    if ended.status in (0, None):
        return (HOLE if may == "fail" else ACCEPTED), said
    if may == "pass":
        return HOLE, said
    # Lint reports findings, and a study the members that failed, where they print their results.
    errors = re.sub(r"(?m)^waiting for .*\n", "", ended.errors)  # A process says every 10 s whom it awaits.
    one = re.match(r"(error: |FATAL Flags|usage: )", errors) or (not errors and ended.output)
    if not one or ended.errors.count("error: ") > 1 or "This is a mistake of dropbn" in printed:
        return TRACEBACK, said
    if len(ended.errors) > _LONGEST or re.search(r"(\S)\1{300}", ended.errors):
        return HOLE, "echoes too much: " + said
    return SENTENCE, said
