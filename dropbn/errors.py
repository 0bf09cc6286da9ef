"""The errors: a request that is refused, and a run that was told to stop."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

_MOST_SHOWN = 300  # characters of what was given that a message repeats


class DropbnError(ValueError):
    """A request that dropbn refuses. Its message is a sentence for the user, not for a debugger.

    A run of more than 300 characters without a space is cut: nobody reads it, and it may be the content of a
    file.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(re.sub(rf"(\S{{{_MOST_SHOWN - 3}}})\S{{4,}}", r"\1...", message))


def shown(given: Any) -> str:
    """What was given, as a message repeats it: the start of its text, or of a value's representation."""
    text = str(given) if isinstance(given, (str, os.PathLike)) else repr(given)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


class Preempted(SystemExit):
    """A run was saved and then stopped by SIGTERM. If it is not caught, the process ends with status 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message


def unknown(what: str, name: str, known: Iterable[str]) -> DropbnError:
    """The error for a `name` that is not one of the `known` names of `what`. It suggests the nearest one."""
    known = list(known)
    nearest = difflib.get_close_matches(shown(name), known, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return DropbnError(f"Unknown {what} {shown(repr(name))}. {hint}Known: {', '.join(known)}.")


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Goes around imports of packages that an extra of dropbn brings; the error says how to install it.

    >>> with extra("plot"):
    ...     from matplotlib.figure import Figure

    Raises:
      DropbnError: a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise DropbnError(
            f"This needs {package}, which is not installed: pip install 'dropbn[{name}]'."
        ) from error


def headline(error: str) -> str:
    """The line of an error that says most: the last of a traceback, the first of a message."""
    lines = error.strip().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]
