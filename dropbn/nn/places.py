"""Named positions where the papers put dropout and BN, as functions from a plain order to an order."""

import dataclasses
import functools
import itertools

from dropbn.errors import DropbnError, unknown
from dropbn.nn.activations import ACTIVATIONS
from dropbn.nn.order import WEIGHTS, Order, Parallel

# Where a named position inserts `drop`: (words it looks for, which of them, before or after it).
_BN, _CONV, _DENSE, _GAP, _ACTIVATION = ("bn",), ("conv",), ("dense",), ("gap",), ("act", *ACTIVATIONS)
BRANCH_PLACES = {
    "a": (_BN, -1, "before"),
    "b": (WEIGHTS, -1, "before"),
    "P0": None,  # before the bracket
    "P1": (_BN, 0, "before"),
    "P2": (_BN, 0, "after"),
    "P3": (_ACTIVATION, 0, "after"),
    "P4": (WEIGHTS, 0, "after"),
    "P5": (_BN, -1, "after"),
    "P6": (WEIGHTS, -1, "before"),
    "P7": (WEIGHTS, -1, "after"),
    "G1": (_BN, -1, "after"),
    "ic": None,  # moves bn too
}
HEAD_PLACES = {
    "last": (_DENSE, -1, "before"),
    "H1": (_CONV, 0, "before"),
    "H2": (_CONV, 0, "after"),
    "H3": (_BN, -1, "after"),
    "H4": (_GAP, 0, "before"),
    "H5": (_GAP, 0, "after"),
    "H6": (_DENSE, -1, "after"),
    "G2": (_GAP, 0, "before"),
}
NORM_PLACES = ("before", "after")


def place(order: Order, name: str) -> Order:
    """The plain `order` with `drop`, or `bn`, in a named position.

    Positions in a block:
    - Li et al. (2018, section 4): `a` before the branch's last BN, `b` before its last weight layer.
    - Kim et al. (2023, Fig. 2): `P0` on the trunk before the split, `P1` before the first BN, `P2` after it,
      `P3` after the first activation, `P4` after the first weight layer, `P5` after the last BN, `P6` before
      the last weight layer, `P7` after it. `G1`, their Guideline 1, is after the branch's last BN, with
      pre-activation or without.
    - Chen et al. (2019): `ic` moves every BN to right before the next weight layer and puts `drop` between
      the two.

    Positions in a head:
    - Li: `last` before the classifier.
    - Kim (Fig. 4): `H1` and `H2` around a convolution, `H3` after BN, `H4` before global average pooling,
      `H5` after it, `H6` after the classifier. `G2`, their Guideline 2, is `H4`.

    `P6+P7` puts `drop` at both. For networks without BN, `before` and `after` (caffenet-benchmark) insert
    `bn` right before or after each activation; a `drop` in the order stays where it is.

    Raises:
      DropbnError: the name is unknown; the order already holds `drop` (`bn` for `before` and `after`); the
        branch does not begin with bn, for P0 to P7 and ic, which are defined for pre-activation; or there is
        no layer of the kind that the position refers to.
    """
    names = name.split("+")
    for part in () if name in NORM_PLACES else names:
        if part not in BRANCH_PLACES and part not in HEAD_PLACES:
            raise unknown("place", part, (*BRANCH_PLACES, *HEAD_PLACES, *NORM_PLACES))
    word = "bn" if name in NORM_PLACES else "drop"
    if order.count(word):
        raise DropbnError(
            f"place {name!r} in the order '{order}', which already holds {word}: give one of them."
        )
    return functools.reduce(_edit, names, order)


def _edit(order, name):
    brackets = [i for i, item in enumerate(order.items) if not isinstance(item, str)]
    if len(brackets) > 1 or any(isinstance(order.items[i], Parallel) for i in brackets):
        raise DropbnError(f"place {name!r} needs an order with one bracket at most, got '{order}'.")
    if not brackets or name in HEAD_PLACES:
        return Order(_edited(order, name))
    at, bracket = brackets[0], order.items[brackets[0]]
    if name == "P0" and bracket.branch.items[0] == "bn":
        return Order((*order.items[:at], "drop", *order.items[at:]))
    branch = Order(_edited(bracket.branch, name))
    return Order((*order.items[:at], dataclasses.replace(bracket, branch=branch), *order.items[at + 1 :]))


def _edited(branch, name):
    """The items of a sequence, with the position's words in it."""
    items = branch.items
    if name in NORM_PLACES:
        around = {"before": lambda word: ("bn", word), "after": lambda word: (word, "bn")}[name]
        return tuple(itertools.chain(*(around(i) if i in _ACTIVATION else (i,) for i in items)))
    if (name.startswith("P") or name == "ic") and items[0] != "bn":
        raise DropbnError(f"place {name!r} is defined for a branch that begins with bn, got '{branch}'.")
    if name == "P0":
        return ("drop", *items)
    if name == "ic":
        return _independent_components(branch)
    words, which, side = BRANCH_PLACES.get(name) or HEAD_PLACES[name]
    found = [i for i, item in enumerate(items) if item in words]
    if not found:
        raise DropbnError(f"place {name!r} stands {side} a {'/'.join(words)}, and '{branch}' has none.")
    at = found[which] + (side == "after")
    return (*items[:at], "drop", *items[at:])


def _independent_components(branch):
    if branch.count("bn") != branch.count(*WEIGHTS):
        raise DropbnError(f"place 'ic' needs a bn for every weight layer, and '{branch}' has another number.")
    moved = []
    for item in branch.items:
        moved += [] if item == "bn" else ["bn", "drop", item] if item in WEIGHTS else [item]
    return tuple(moved)
