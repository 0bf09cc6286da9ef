"""Convolution whose weight gradient is summed over parts of the batch, which is faster on a CPU.

The gradient of a kernel is itself a convolution, with the image as the window: it sums over all images and
pixels, and the output gradients that it reads again for every row of the kernel soon fill more than a core's
cache. In parts of 32 images they fit (benchmarks/notes.md has the measurements). Values and the gradient of
the images are those of `lax.conv_general_dilated`; the kernel's gradient is the same sum in another order.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_IMAGES = 32  # of a part; fewer gain little, and every part costs a twentieth of a second of compilation


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
      window_strides, padding, **options: as of `lax.conv_general_dilated`.
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

    # Transposed, this is the sum over parts.
    parts = [convolve(images[start : start + _IMAGES], d_kernel) for start in range(0, len(images), _IMAGES)]
    return in_parts(options, *primals), convolve(d_images, kernel) + jnp.concatenate(parts)


# Traced once for all convolutions of a shape.
_in_parts = jax.jit(in_parts, static_argnums=0)
