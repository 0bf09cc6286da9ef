"""The errors: a request that is refused, and a run that was told to stop."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class DropbnError(ValueError):
    """A request that dropbn refuses. Its message is a sentence for the user, not for a debugger."""


class Preempted(SystemExit):
    """A run was saved and then stopped by SIGTERM. If it is not caught, the process ends with status 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message


def unknown(what: str, name: str, known: Iterable[str]) -> DropbnError:
    """The error for a `name` that is not one of the `known` names of `what`. It suggests the nearest one."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return DropbnError(f"Unknown {what} {name!r}. {hint}Known: {', '.join(known)}.")


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
