"""Convolution whose kernel gradient is summed over parts of the batch, which is faster on a CPU.

The gradient of a kernel is itself a convolution over all images and pixels. For every row of the kernel it
reads the gradients of the outputs again, and for a whole batch these do not fit into a core's cache. For 32
images they do.

Replaces: `jax.lax.conv_general_dilated`. Values and the gradient of the images are the same, the kernel's
gradient is the same sum in another order; tests/nn/kernels/test_convolution.py compares the two.

Brings: on one CPU core, a training step is 1.09 (PreResNet-20) to 1.45 times (WRN-16-4) as fast
(benchmarks/notes.md). On other devices it calls the plain form.

Delete it when XLA's CPU convolutions split this sum by themselves.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_IMAGES = 32  # in a part; smaller parts gain little, and each part takes 0.05 s to compile


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for `flax.linen.Conv(conv_general_dilated=...)`.

    Args:
      lhs: images, the batch first.
      rhs: the kernel.
      window_strides, padding, **options: as in `lax.conv_general_dilated`.
    """
    if jax.default_backend() != "cpu" or len(lhs) <= _IMAGES:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    padding = padding if isinstance(padding, str) else tuple((low, high) for low, high in padding)
    given: dict[str, Any] = {"window_strides": tuple(window_strides), "padding": padding} | options
    return _in_parts(tuple(given.items()), lhs, rhs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def in_parts(options: tuple[tuple[str, Any], ...], images: jax.Array, kernel: jax.Array) -> jax.Array:
    """`lax.conv_general_dilated` with `options`, the kernel's gradient summed over parts of the images."""
    return lax.conv_general_dilated(images, kernel, **dict(options))


@in_parts.defjvp
def _derivative(options, primals, tangents):
    images, kernel = primals
    d_images, d_kernel = tangents

    def convolve(images, kernel):
        return lax.conv_general_dilated(images, kernel, **dict(options))

    # The transpose of this is the sum over parts.
    parts = [convolve(images[start : start + _IMAGES], d_kernel) for start in range(0, len(images), _IMAGES)]
    return in_parts(options, *primals), convolve(d_images, kernel) + jnp.concatenate(parts)


# Traced once for all convolutions with the same shapes.
_in_parts = jax.jit(in_parts, static_argnums=0)
