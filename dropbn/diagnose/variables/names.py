"""Names of arrays: paths of keys, however a file joins them."""

import re
from collections.abc import Iterable
from typing import Any

import jax

Name = tuple[str, ...]
_MOST = 20  # lines of an error


def named(tree: dict) -> dict[Name, Any]:
    """The leaves of variables by name, in the order of the tree."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        plain(parts(jax.tree_util.keystr(path, simple=True, separator="/"))): leaf for path, leaf in leaves
    }


def parts(*keys: str) -> Name:
    """Keys as a path, however they were joined: "a/b", "a.b" or "['a']['b']"."""
    return tuple(part for key in keys for part in re.split(r"[/.\[\]'\"]+", key) if part)


def plain(name: Name) -> Name:
    """A name without the level "value", which boxes and the variables of NNX add."""
    return name[:-1] if name[-1:] == ("value",) and len(name) > 1 else name


def is_below(root: Name, name: Name) -> bool:
    """Whether a name begins with a root."""
    return name[: len(root)] == root


def some(names: Iterable[Name]) -> str:
    """The first of several names, for a message."""
    shortened = ["/".join(name) for name in names]
    return (
        ", ".join(shortened[:6]) + f" and {len(shortened) - 6} more" * (len(shortened) > 6)
    ) or "no arrays"


def listed(lines: list[str]) -> str:
    """Lines for a message, indented; only the first of many."""
    more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return "".join(f"\n  {line}" for line in [*lines[:_MOST], *more])
