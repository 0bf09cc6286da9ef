"""The cost of a program: the floating-point operations of its convolutions and products, from its jaxpr."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def flops(function: Callable, *args: Any) -> int:
    """The floating-point operations of a function's convolutions and matrix products; nothing is computed.

    A multiplication and an addition count as two operations. The body of a scan counts as often as it runs,
    the body of any other loop once.

    Args:
      function: the function, which is traced.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel, features = equation.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[features])
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * inner
        total += params.get("length", 1) * sum(map(_flops, _inner(params)))
    return total


def _inner(params):
    """The jaxprs among the parameters of an equation."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if hasattr(leaf, "eqns")]


def speed() -> float:
    """Floating-point operations per second of a forward 3x3 convolution on one device, timed now."""
    images, kernel = jnp.ones((64, 16, 16, 64)), jnp.ones((3, 3, 64, 64))
    convolve = jax.jit(
        lambda x: lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    jax.block_until_ready(convolve(images))
    number, started = 0, time.monotonic()
    while number < 3 or time.monotonic() - started < 0.3:
        jax.block_until_ready(convolve(images))
        number += 1
    return number * flops(convolve, images) / (time.monotonic() - started)
