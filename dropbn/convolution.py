"""Convolution whose weight gradient is summed over parts of the batch, which is faster on a CPU.

The gradient of a kernel is itself a convolution, with the image as the window: it sums over all images and
pixels, and the output gradients that it reads again for every row of the kernel soon fill more than a core's
cache. In parts of 32 images they fit (benchmarks/notes.md has the measurements). Values and the gradient of
the images are those of `lax.conv_general_dilated`; the kernel's gradient is the same sum in another order.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_IMAGES = 32  # of a part; fewer gain little, and every part costs a twentieth of a second of compilation


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for `flax.linen.Conv(conv_general_dilated=...)`.

    Args:
      lhs: images, the batch first.
      rhs: the kernel.
      window_strides, padding, **options: as of `lax.conv_general_dilated`.
    """
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options
    )
    if jax.default_backend() != "cpu" or len(lhs) <= _IMAGES:
        return plain(lhs, rhs)
    return in_parts(plain, lhs, rhs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_parts(convolve, images, kernel):
    """`convolve(images, kernel)`, the kernel's gradient summed over parts of the images."""
    return convolve(images, kernel)


def _forward(convolve, images, kernel):
    return convolve(images, kernel), (images, kernel)


def _backward(convolve, kept, gradient):
    images, kernel = kept
    # Transposed, not differentiated: that would trace the convolution itself once more for every part.
    (of_images,) = jax.linear_transpose(lambda images: convolve(images, kernel), images)(gradient)

    def of_kernel(start):
        part = images[start : start + _IMAGES]
        transposed = jax.linear_transpose(lambda kernel: convolve(part, kernel), kernel)
        return transposed(gradient[start : start + _IMAGES])[0]

    parts = [of_kernel(start) for start in range(0, len(images), _IMAGES)]
    return of_images, functools.reduce(jnp.add, parts)


in_parts.defvjp(_forward, _backward)
