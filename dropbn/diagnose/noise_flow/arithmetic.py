"""The value of a primitive of known numbers, by NumPy where NumPy has it and otherwise by JAX."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from numpy.typing import DTypeLike


def _special(name):
    """A function of scipy.special, which takes its time to import."""

    def function(*arguments):
        from scipy import special

        return getattr(special, name)(*arguments)

    return function


# Elementwise functions that NumPy computes. JAX, which computes the others, compiles each for every shape.
_NUMPY: dict[str, Callable] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.bitwise_not,
    "shift_left": np.left_shift,
    "shift_right_logical": np.right_shift,
    "floor": np.floor,
    "ceil": np.ceil,
    "is_finite": np.isfinite,
    "erf_inv": _special("erfinv"),
    "select_n": lambda which, *cases: np.select([which == i for i in range(len(cases))], cases, cases[0]),
}
ELEMENTWISE = frozenset(_NUMPY) | {"logistic", "erf", "integer_pow", "pow", "clamp"}


def evaluate(primitive: Primitive, params: dict, values: list, dtype: DTypeLike | None = None) -> Any:
    """What the primitive gives, converted to `dtype` if one is given and it is one array."""
    name = primitive.name
    if name in _NUMPY:
        with np.errstate(all="ignore"):
            found = _NUMPY[name](*map(np.asarray, values))
            return found if dtype is None else found.astype(dtype)
    if name == "broadcast_in_dim" and len(values) == 1:
        shape, kept = params["shape"], params["broadcast_dimensions"]
        added = [axis for axis in range(len(shape)) if axis not in kept]
        return np.broadcast_to(np.expand_dims(values[0], added), shape)
    if name == "convert_element_type":
        return np.asarray(values[0]).astype(params["new_dtype"])
    if name == "bitcast_convert_type":
        return np.asarray(values[0]).view(params["new_dtype"])
    if name == "iota":
        shape, dimension = params["shape"], params["dimension"]
        numbers = np.arange(shape[dimension], dtype=params["dtype"])
        return np.broadcast_to(np.expand_dims(numbers, [*range(1, len(shape) - dimension)]), shape)
    with jax.ensure_compile_time_eval():  # Eager, even while a model is traced.
        return primitive.bind(*values, **params)
