"""What a tool was given, checked before anything is traced: one sentence that says what is wanted."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dropbn.errors import DropbnError, shown

_NO_NUMBERS = tuple("OSUMm")  # NumPy's kinds of objects, bytes, text and times


def check_inputs(x: Any) -> None:
    """Raises for inputs that are no array or tree of arrays, hold no numbers, or have no example."""
    leaves = jax.tree.leaves(x)
    wanted = "give an array with the examples along its first axis, or a tree of such arrays"
    for leaf in leaves:
        if isinstance(leaf, (str, bytes)) or getattr(getattr(leaf, "dtype", None), "kind", "") in _NO_NUMBERS:
            what = shown(repr(leaf)) if isinstance(leaf, (str, bytes)) else f"an array of {leaf.dtype}"
            raise DropbnError(f"The inputs of a batch hold {what}, not numbers: {wanted}.")
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape")]
    if not arrays or (isinstance(x, list) and len(arrays) < len(leaves)):
        raise DropbnError(f"The inputs of a batch are {shown(repr(x))}: {wanted}.")
    for leaf in arrays:
        if 0 in leaf.shape:
            raise DropbnError(
                f"The inputs of a batch have the shape {tuple(leaf.shape)}, with no example in it."
            )


def check_rngs(rngs: Mapping[str, Any]) -> None:
    """Raises for random keys that are not keys by the names of streams."""
    for stream, key in rngs.items():
        dtype, shape = getattr(key, "dtype", None), np.shape(key) if hasattr(key, "shape") else None
        is_key = dtype is not None and (
            (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and shape == ())
            or (dtype == np.uint32 and shape is not None and len(shape) == 1)
        )
        if not isinstance(stream, str) or not is_key:
            raise DropbnError(
                f"rngs: {shown(repr(stream))} is {shown(repr(key))}: give a random key for each stream, such "
                "as {'dropout': jax.random.key(0)}."
            )


def check_count(name: str, number: Any) -> None:
    """Raises for a number of times that is no whole number from 1."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < 1:
        raise DropbnError(f"{name}={shown(repr(number))}: give a whole number, at least 1.")


def check_variables(variables: Any) -> None:
    """Raises for variables that are no dict of collections."""
    if not isinstance(variables, Mapping):
        raise DropbnError(
            f"variables are {shown(repr(variables))}: give what init() returns, "
            "{'params': ..., 'batch_stats': ...}."
        )
