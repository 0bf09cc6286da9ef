"""Named positions: where the papers put dropout, as functions from a plain order to an order."""

import dataclasses

from dropbn.errors import DropbnError, unknown
from dropbn.order import ACTIVATIONS, WEIGHTS, Order

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
}
HEAD_PLACES = {
    "last": (_DENSE, -1, "before"),
    "H1": (_CONV, 0, "before"),
    "H2": (_CONV, 0, "after"),
    "H3": (_BN, -1, "after"),
    "H4": (_GAP, 0, "before"),
    "H5": (_GAP, 0, "after"),
    "H6": (_DENSE, -1, "after"),
}


def place(order: Order, name: str) -> Order:
    """The plain `order` with `drop` in a named position.

    In a block: Li et al. (2018, section 4) `a`, before the branch's last BN, and `b`, before its last
    weight layer; Kim et al. (2023, Fig. 2) `P0` on the trunk before the split, `P1` before the first BN,
    `P2` after it, `P3` after the first activation, `P4` after the first weight layer, `P5` after the
    last BN, `P6` before the last weight layer, `P7` after it, and `G1`, their Guideline 1: after the
    branch's last BN, pre-activation or not. In a head: Li's `last`, before the
    classifier; Kim's (Fig. 4) `H1` and `H2` around a convolution, `H3` after BN, `H4` before global
    average pooling, `H5` after it, `H6` after the classifier.

    Raises:
      DropbnError: an unknown name, an order that already holds `drop`, P0 to P7 in a branch that does
        not begin with bn (Kim defines them for pre-activation), or no layer of the kind to stand by.
    """
    places = BRANCH_PLACES | HEAD_PLACES
    if name not in places:
        raise unknown("place", name, places)
    if order.count("drop"):
        raise DropbnError(
            f"place {name!r} in the order '{order}', which already holds drop: give one of them."
        )
    brackets = [i for i, item in enumerate(order.items) if not isinstance(item, str)]
    if len(brackets) > 1:
        raise DropbnError(f"place {name!r} needs an order with one bracket at most, got '{order}'.")
    if not brackets or name in HEAD_PLACES:
        return _insert(order, name, places[name])
    at, bracket = brackets[0], order.items[brackets[0]]
    if name == "P0":
        return Order((*order.items[:at], "drop", *order.items[at:]))
    branch = _insert(bracket.branch, name, places[name])
    return Order((*order.items[:at], dataclasses.replace(bracket, branch=branch), *order.items[at + 1 :]))


def _insert(branch, name, rule):
    items = branch.items
    if name.startswith("P") and items[0] != "bn":
        raise DropbnError(f"place {name!r} is defined for a branch that begins with bn, got '{branch}'.")
    if rule is None:
        return Order(("drop", *items))
    words, which, side = rule
    found = [i for i, item in enumerate(items) if item in words]
    if not found:
        raise DropbnError(f"place {name!r} stands {side} a {'/'.join(words)}, and '{branch}' has none.")
    at = found[which] + (side == "after")
    return Order((*items[:at], "drop", *items[at:]))
