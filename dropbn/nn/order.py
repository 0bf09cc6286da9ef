"""Order strings: the order of a network's layers as text.

    bn relu conv bn relu conv                  a plain sequence
    [bn relu conv bn relu conv | conv]         residual: x + branch(x); the shortcut after | acts on raw x
                                               and runs only where the branch changes the shape
    {bn relu conv bn relu conv}                dense: concat(x, branch(x)) along the channels
    {conv relu | maxpool conv relu}            parallel: concat(branch(x), branch(x), ...)

A word is one of `conv dense se bn lrn drop sparse maxpool avgpool gap flatten`, the name of an activation, or
`act` for the activation that the configuration names. The string holds no sizes: the model's family gives one
`Size` for every conv, dense, se (squeeze and excitation), maxpool and avgpool, in the order of the string.

Layers are named by kind and count, whatever the brackets: conv1, bn1, conv2, bn2; shortcut_conv1. Moving
`drop` therefore renames no parameter, and a checkpoint trained with one placement loads into any other.
"""

import collections
import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, shown, unknown
from dropbn.nn.activations import ACTIVATIONS

WEIGHTS = ("conv", "dense")
SIZED = (*WEIGHTS, "se", "maxpool", "avgpool")
WORDS = (*SIZED, "bn", "lrn", "drop", "sparse", "gap", "flatten", "act", *ACTIVATIONS)
_CONTEXT = 140  # characters before and after a mistake that a message shows
_DEEPEST = 50  # nested brackets; Python's recursion would allow some hundreds


@dataclasses.dataclass(frozen=True)
class Order:
    """A parsed order: its `items` are words and brackets. `str` gives the string again."""

    items: tuple["Item", ...]

    def __str__(self) -> str:
        return " ".join(map(str, self.items))

    def named(self, prefix: str = "") -> list[tuple[str, str]]:
        """(layer name, word) of every word, shortcuts included, in the order of the string."""
        counts: collections.Counter[str] = collections.Counter()

        def visit(order, prefix):
            for item in order.items:
                if isinstance(item, str):
                    counts[prefix + item] += 1
                    yield f"{prefix}{item}{counts[prefix + item]}", item
                    continue
                for branch in item.branches if isinstance(item, Parallel) else [item.branch]:
                    yield from visit(branch, prefix)
                if isinstance(item, Residual) and item.shortcut:
                    yield from visit(item.shortcut, "shortcut_")

        return list(visit(self, prefix))

    def count(self, *words: str) -> int:
        """How often any of `words` occurs, shortcuts included."""
        return sum(word in words for _, word in self.named())


@dataclasses.dataclass(frozen=True)
class Residual:
    """x + branch(x), or shortcut(x) + branch(x) where the branch changes the shape."""

    branch: Order
    shortcut: Order | None = None

    def __str__(self) -> str:
        return f"[{self.branch} | {self.shortcut}]" if self.shortcut else f"[{self.branch}]"


@dataclasses.dataclass(frozen=True)
class Concat:
    """concat(x, branch(x)) along the channels (a dense block's layer)."""

    branch: Order

    def __str__(self) -> str:
        return f"{{{self.branch}}}"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """concat(branch(x), branch(x), ...) along the channels (an inception block); two branches or more."""

    branches: tuple[Order, ...]

    def __str__(self) -> str:
        return f"{{{' | '.join(map(str, self.branches))}}}"


Item = str | Residual | Concat | Parallel


def parse(text: str) -> Order:
    """Reads an order string; `parse(str(order)) == order`.

    Raises:
      DropbnError: it is no text, a word is unknown, brackets do not match, an order, branch or shortcut is
        empty, a bar stands outside brackets, or more than 50 brackets are nested. The message shows the
        string, or the part of a long one, with a caret under the place.
    """
    if not isinstance(text, str):
        raise DropbnError(f"An order is a text, such as 'bn relu conv', not {shown(repr(text))}.")
    pieces = [(m.group(), m.start()) for m in re.finditer(r"[\[\]{}|]|[^\s\[\]{}|]+", text)]
    pieces.append(("", len(text)))
    position = 0

    def refuse(message, start, width=1):
        before, after = text[:start][-_CONTEXT:], text[start:][:_CONTEXT]
        caret = " " * len(before) + "^" * max(min(width, len(after)), 1)
        raise DropbnError(f"{message}\n    {before}{after}\n    {caret}")

    depth = 0
    for piece, start in pieces:
        depth += (piece in ("[", "{")) - (piece in ("]", "}"))
        if depth > _DEEPEST:
            refuse(f"More than {_DEEPEST} brackets within each other.", start)

    def read(ends, where):
        nonlocal position
        items: list[Item] = []
        while pieces[position][0] not in ends:
            piece, start = pieces[position]
            position += 1
            if piece == "[":
                branch, shortcut = read(("|", "]"), "branch"), None
                if pieces[position - 1][0] == "|":
                    shortcut = read(("]",), "shortcut")
                items.append(Residual(branch, shortcut))
            elif piece == "{":
                branches = [read(("|", "}"), "branch")]
                while pieces[position - 1][0] == "|":
                    branches.append(read(("|", "}"), "branch"))
                items.append(Parallel(tuple(branches)) if branches[1:] else Concat(*branches))
            elif not piece:
                refuse(f"The order ends before its {' or '.join(map(repr, ends))}.", start)
            elif piece in "[]{}|":
                refuse(f"{piece!r} has no place here.", start)
            elif piece not in WORDS:
                refuse(str(unknown("word in an order:", piece, WORDS)), start, len(piece))
            else:
                items.append(piece)
        if not items:
            refuse(f"An empty {where}.", pieces[position][1])
        position += 1
        return Order(tuple(items))

    return read(("",), "order")


def hoist(order: Order) -> Order:
    """Takes what stands before the first weight layer out of the residual bracket, so that the skip gets it.

    "[bn relu conv bn relu conv | conv]" becomes "bn relu [conv bn relu conv | conv]". So begins a stage of a
    wide residual network, where branch and shortcut share the pre-activation.
    """
    items: list[Item] = []
    for item in order.items:
        if isinstance(item, Residual):
            branch = item.branch.items
            first = next((i for i, word in enumerate(branch) if word in WEIGHTS), 0)
            items += [*branch[:first], Residual(Order(branch[first:]), item.shortcut)]
        else:
            items.append(item)
    return Order(tuple(items))


def unbracket(order: Order) -> Order:
    """The order without its residual brackets: a block that changes the shape and has no skip.

    "[conv bn relu conv bn]" becomes "conv bn relu conv bn", as in MobileNetV2 where the channels change.
    """
    items: list[Item] = []
    for item in order.items:
        items += item.branch.items if isinstance(item, Residual) else [item]
    return Order(tuple(items))


def run(order: Order, x: jax.Array, layer: Callable[[str, str, jax.Array], jax.Array]) -> jax.Array:
    """Runs `order` on `x` by calling `layer(name, word, x)` for every word that it reaches.

    Raises:
      DropbnError: a branch changes the shape and has no shortcut, the shortcut gives another shape, or parts
        to be concatenated differ in more than the channels.
    """
    return _run(order, x, layer, iter(order.named()))


def _run(order, x, layer, names):
    for item in order.items:
        if isinstance(item, str):
            x = layer(*next(names), x)
            continue
        if isinstance(item, Parallel):
            x = _concatenate(item, [_run(branch, x, layer, names) for branch in item.branches])
            continue
        y = _run(item.branch, x, layer, names)
        if isinstance(item, Concat):
            x = _concatenate(item, [x, y])
            continue
        # The shortcut uses up its names even if it does not run, so that no later layer changes its name.
        of_shortcut = [next(names) for _ in item.shortcut.named()] if item.shortcut else []
        if y.shape != x.shape:
            if not item.shortcut:
                raise DropbnError(
                    f"'{item}' changes the shape {x.shape} to {y.shape}: it needs '| shortcut'."
                )
            x = _run(item.shortcut, x, layer, iter(of_shortcut))
            if y.shape != x.shape:
                raise DropbnError(f"'{item}': the branch gives {y.shape}, the shortcut {x.shape}.")
        x = x + y
    return x


def _concatenate(item, parts):
    if len({part.shape[:-1] for part in parts}) > 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise DropbnError(f"'{item}' concatenates channels, but the parts are {shapes}.")
    return jnp.concatenate(parts, axis=-1)
