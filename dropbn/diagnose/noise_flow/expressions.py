"""What a model draws, as expressions of its random bits, and the moments of an affine noise made of them.

A model that draws by hand multiplies its data by drawn numbers and adds others, y = m x + n. Here m and n are
expressions: trees of primitives over random bits, constants and parameters. Mostly, an element of m and n is
a function of bits of its own. Then their moments come from a grid, on which the bits of a draw run through
all their values once. Otherwise, as in DropBlock, which pools a mask, some arrays are drawn.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dropbn.diagnose.noise_flow import arithmetic
from dropbn.diagnose.tracing import DRAWING
from dropbn.nn import laws

Eqn = Any  # A jax.extend.core.JaxprEqn; its variables have a shape and a dtype.

_GRID = 2**16
# So many elements are drawn where there is no grid, at most in so many arrays; larger arrays are not drawn.
_DRAWN, _ARRAYS, _LARGEST = 2**17, 16, 2**24
_ELEMENTWISE = arithmetic.ELEMENTWISE | {"bitcast_convert_type", "convert_element_type"}
# They move numbers, and each number stays what it is.
_MOVES = frozenset(
    "reshape transpose squeeze expand_dims broadcast_in_dim copy slice rev dynamic_slice "  # noqa: SIM905
    "stop_gradient reduce_precision sharding_constraint".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A value that depends on no data.

    Attributes:
      eqn: the equation that computes it; None for a constant, a parameter or a key, and for a slice of its
        only operand, which a loop takes.
      operands: the expressions that the equation takes.
      output: which of the equation's outputs it is.
      value: a constant's or a key's; None for a parameter whose value is not known.
      name: a parameter's, or where a draw stands.
      is_key: whether it is a key of the call.
    """

    eqn: Eqn | None = None
    operands: "tuple[Expression, ...]" = ()
    output: int = 0
    value: Any = None
    name: str = ""
    is_key: bool = False

    @functools.cached_property
    def draws(self) -> "frozenset[Expression]":
        """The draws on which it depends."""
        if self.is_draw:
            return frozenset([self])
        return frozenset().union(*(operand.draws for operand in self.operands))

    @property
    def is_draw(self) -> bool:
        return self.eqn is not None and bool(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.eqn.outvars[self.output].aval.shape if self.eqn else np.shape(self.value)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_elementwise(self) -> bool:
        """Whether each of its elements is a function of one element of every draw."""
        return all(
            each.eqn is None or each.eqn.primitive.name in _ELEMENTWISE | _MOVES | DRAWING
            for each in _nodes(self)
        )


ONE, ZERO = Expression(value=np.float32(1)), Expression(value=np.float32(0))


def _nodes(root):
    """The expression and those that it is made of, each once, without the keys of its draws."""
    found, left = {}, [root]
    while left:
        node = left.pop()
        if id(node) not in found:
            found[id(node)] = node
            left.extend(() if node.is_draw else node.operands)
    return found.values()


def affine(m: Expression, n: Expression, at_test: tuple[Expression, Expression] | None) -> laws.Affine | None:
    """The moments of a noise y = m x + n, in terms of what the array is in test mode.

    If that is z = m_t x + n_t, then y = (m / m_t) z + (n - n_t m / m_t).

    Args:
      m, n: drawn.
      at_test: (m_t, n_t), which are not drawn; None if unknown, and then E[m] and 0 are taken.

    Returns:
      The moments over all draws and elements; None if they are unknown, because a parameter without a value
      changes them, or because the arrays are large.
    """
    test_m, test_n = at_test or (None, ZERO)
    roots = [m, n, *([test_m] if test_m else []), test_n]
    values = [_values(roots, seed) for seed in range(2)]
    if any(each is None for each in values):
        return None
    tolerance = 1e-3 if all(root.is_elementwise for root in roots) else 0.03
    a, b = (np.array(_moments(*each, known=bool(at_test))) for each in values if each)
    scale = 1 + np.abs(a).max()
    if at_test is None and max(a[2], b[2]) > tolerance**-2:
        return None  # E[m] = 0: test mode has no such array, as in z = mean + deviation * drawn.
    # The two differ in what stands for parameters without a value, and in what is drawn in arrays.
    if not np.isfinite([a, b]).all() or np.abs(a - b).max() > 2 * tolerance * scale:
        return None
    mean = (a + b) / 2
    mean[2:][np.abs(mean[2:]) < 1e-9] = 0.0
    near = [1.0 if abs(mean[0] - 1) < tolerance else mean[0], 0.0 if abs(mean[1]) < tolerance else mean[1]]
    return laws.Affine(*map(float, [*near, *mean[2:]]))


def equal(a: tuple[Expression, ...], b: tuple[Expression, ...]) -> bool:
    """Whether expressions that are not drawn are the same numbers."""
    if not all(each.is_elementwise for each in (*a, *b)):
        return False
    values = _on_grid([*a, *b], 0)
    return all(np.array_equal(*pair) for pair in zip(values[: len(a)], values[len(a) :], strict=True))


def by_channel(expression: Expression, size: int) -> np.ndarray | None:
    """The numbers of an expression that is not drawn, one or `size` of them along its last axis.

    None if they are unknown, or vary along another axis.
    """
    leaves = (node for node in _nodes(expression) if node.eqn is None and not node.operands)
    if not expression.is_elementwise or any(leaf.value is None for leaf in leaves):
        return None
    (values,) = (np.broadcast_to(each, _GRID) for each in _on_grid([expression], 0))
    found = values[:1] if np.all(values == values[0]) else values[:size]
    return found.astype(np.float64) if np.array_equal(np.resize(found, _GRID), values) else None


def is_positive(m: Expression) -> bool:
    """Whether m >= 0, as far as a grid or some draws tell."""
    values = _values([m], 0)
    return values is not None and bool(np.all(np.asarray(values[0]) >= 0))


def _values(roots, seed):
    """The values of the expressions at many elements; None if they cannot be told or the arrays are large."""
    if all(root.is_elementwise for root in roots):
        return _on_grid(roots, seed)
    if max(each.size for root in roots for each in _nodes(root)) > _LARGEST:
        return None
    try:
        return _in_arrays(roots, seed)
    except (TypeError, ValueError):  # The shape of a parameter without a value decides.
        return None


def _moments(m, n, *at_test, known):
    m, n, *others = np.broadcast_arrays(*(np.asarray(each, np.float64) for each in (m, n, *at_test)))
    test_m, test_n = others if known else (np.full_like(m, m.mean()), np.zeros_like(n))
    with np.errstate(all="ignore"):
        m = m / test_m
        n = n - m * test_n
        return m.mean(), n.mean(), m.var(), ((m - m.mean()) * (n - n.mean())).mean(), n.var()


def _on_grid(roots, seed):
    """Values of the expressions at `_GRID` elements; those of each draw run through all that it can give."""
    numbers = itertools.count()

    def drawn(node, operands):
        order = np.random.default_rng(next(numbers)).permutation(_GRID)
        return _quantiles(node, (order + 0.5) / _GRID, operands)

    def leaf(node):
        return _some_number(node.name, seed) if node.value is None else _spread(node.value)

    return _evaluate(roots, leaf, drawn, moves=_MOVES)


def _in_arrays(roots, seed):
    """Values of the expressions in whole arrays, drawn several times, (draws * elements,)."""
    number = min(_ARRAYS, max(1, _DRAWN // max(root.size for root in roots)))
    found = []
    for draw in range(number):
        rng = np.random.default_rng([seed, draw])

        def drawn(node, operands, rng=rng):
            return _quantiles(node, rng.random(node.eqn.outvars[node.output].aval.shape), operands)

        def leaf(node, draw=draw):
            if node.is_key:  # A loop draws, as in a Poisson draw.
                return jax.random.fold_in(node.value, seed * _ARRAYS + draw)
            return _some_number(node.name, seed) if node.value is None else node.value

        values = _evaluate(roots, leaf, drawn)
        found.append([np.ravel(each) for each in np.broadcast_arrays(*map(np.asarray, values))])
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def _quantiles(node, u, operands):
    dtype = node.eqn.outvars[node.output].aval.dtype
    if node.eqn.primitive.name == "random_gamma":
        from scipy import special  # It takes its time to import.

        found = special.gammaincinv(operands[0], u)
        return (np.log(found) if node.eqn.params["log_space"] else found).astype(dtype)
    return np.floor(u * 2.0 ** (8 * np.dtype(dtype).itemsize)).astype(dtype)


def _spread(value):
    """A constant at the elements of the grid: a number, or its elements over and over."""
    value = np.asarray(value)
    if value.ndim > 1 and np.array_equal(value, np.broadcast_to(value[(0,) * (value.ndim - 1)], value.shape)):
        value = value[(0,) * (value.ndim - 1)]
    return value.flat[0] if value.size == 1 else np.resize(value.ravel(), _GRID)


def _some_number(name, seed):
    """What stands for a parameter without a value: the same in all expressions."""
    return np.float32(np.random.default_rng([seed, *name.encode()]).uniform(0.5, 1.5))


def _evaluate(roots: list, leaf: Callable, drawn: Callable, moves: frozenset = frozenset()) -> list:
    """The values of the expressions.

    Args:
      roots: the expressions.
      leaf: makes those of constants, parameters and keys.
      drawn: (draw, the parameters of its distribution) -> what it draws.
      moves: primitives whose output is their first operand.
    """
    known: dict[int, Any] = {}

    def value(node):
        if id(node) not in known:
            known[id(node)] = computed(node)
        return known[id(node)]

    def computed(node):
        if node.eqn is None:
            return value(node.operands[0])[0] if node.operands else leaf(node)
        primitive = node.eqn.primitive
        if primitive.name in DRAWING:
            parameters = node.operands[1:] if primitive.name == "random_gamma" else ()
            return drawn(node, [value(each) for each in parameters])
        operands = [value(each) for each in node.operands]
        if primitive.name in moves:
            return operands[0]
        dtype = node.eqn.outvars[0].aval.dtype if primitive.name in _ELEMENTWISE else None
        found = arithmetic.evaluate(primitive, node.eqn.params, operands, dtype)
        return found[node.output] if primitive.multiple_results else found

    return [value(root) for root in roots]
