"""Batch normalization over a stated group of images."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from dropbn.errors import DropbnError
from dropbn.nn.kernels import batch_norm


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` whose statistics cover a stated number of images on any machine.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with mean and (biased) variance over all images of a
    group and their pixels (Ioffe & Szegedy 2015), in float32 at least. The number of images that share a
    statistic is part of an experiment. So it is stated, and does not follow from the number of devices.

    Running statistics follow `running = momentum * running + (1 - momentum) * batch`, where `batch` is
    the average over this device's groups; a training step averages them over devices. The running
    variance is the biased one, as in Flax; PyTorch's is larger by m / (m - 1) for m values a channel.

    The default momentum is 0.9. use_fast_variance and force_float32_reductions have no effect: the variance
    is always that of `moments.of`, about the first image's mean and in float32 at least, because Flax's fast
    form loses the variance of a channel with a large mean.

    Attributes (in addition to those of `flax.linen.BatchNorm`):
      group_size: images per statistic. 0 is the whole batch, over all devices of `axis_name`. Otherwise
        a divisor of the device's batch (several groups a device) or a multiple (a group spans devices).
      axis_name: the device axis of `pmap`; None on one device.

    Raises:
      DropbnError: the `group_size` does not fit, channels are not last, or a `mask` is given.
    """

    momentum: float = 0.9
    use_fast_variance: bool = False
    group_size: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes `x` of shape (batch, ..., channels); returns the same shape."""
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        check_options(self, x, mask)
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        learned = self.use_scale or self.use_bias
        dtype = self.dtype or (jnp.promote_types(x.dtype, self.param_dtype) if learned else x.dtype)
        scale = self._parameter("scale", self.scale_init, channels) if self.use_scale else 1.0
        bias = self._parameter("bias", self.bias_init, channels) if self.use_bias else 0.0
        given = x, scale, bias, running_mean.value, running_var.value
        if use_running_average:
            return by_running(self.epsilon, dtype, *given)
        number, across = (1, None) if self.is_initializing() else groups_of(self, len(x))
        y, mean, var = by_groups(number, across, self.epsilon, self.momentum, dtype, *given)
        if not self.is_initializing():
            running_mean.value, running_var.value = mean, var
        return y

    def _parameter(self, name, init, channels):
        """`self.param`, but `init` is not traced only to check the shape of a value that exists."""
        value = nn.unbox(self.get_variable("params", name))
        if np.shape(value) == (channels,):
            return value
        return self.param(name, init, (channels,), self.param_dtype)


# What follows serves BatchNorm in both of Flax's APIs: `layer` is a module of either.
def check_options(layer: Any, x: jax.Array, mask: jax.Array | None) -> None:
    """Raises a `DropbnError` for what the class does not do."""
    if layer.axis not in (-1, x.ndim - 1) or mask is not None or layer.axis_index_groups is not None:
        raise DropbnError(
            "dropbn's BatchNorm takes channels on the last axis, group_size for axis_index_groups, and no "
            "mask; use Flax's own where you need those."
        )


def groups_of(layer: Any, images: int) -> tuple[int, tuple | None]:
    """The number of groups on each device, and `across` for `kernels.batch_norm.normalize`."""
    devices = lax.axis_size(layer.axis_name) if layer.axis_name else 1
    number, together = split_groups(layer.group_size, images, devices)
    if together is None:
        return number, None
    return number, (layer.axis_name, tuple(map(tuple, together)) if len(together) > 1 else None)


# These two are traced once for all layers with the same shapes.
@functools.partial(jax.jit, static_argnums=(0, 1))
def by_running(
    epsilon: float,
    dtype: DTypeLike,
    x: jax.Array,
    scale: ArrayLike,
    bias: ArrayLike,
    running_mean: jax.Array,
    running_var: jax.Array,
) -> jax.Array:
    """`x` normalized by running statistics."""
    x, scale, bias = _promoted(x, scale, bias)
    factor = lax.rsqrt(running_var + epsilon) * scale
    return ((x - running_mean) * factor + bias).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def by_groups(
    number: int,
    across: tuple | None,
    epsilon: float,
    momentum: float,
    dtype: DTypeLike,
    x: jax.Array,
    scale: ArrayLike,
    bias: ArrayLike,
    running_mean: jax.Array,
    running_var: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` normalized by the statistics of its `number` groups, and the new running statistics."""
    x, scale, bias = _promoted(x, scale, bias)
    groups = x.reshape(number, -1, *x.shape[1:])
    y, *batch = batch_norm.normalize(across, epsilon, groups, scale, bias)
    running = (
        momentum * before + (1 - momentum) * of_groups.mean(0)
        for before, of_groups in zip((running_mean, running_var), batch, strict=True)
    )
    mean, var = running
    return y.reshape(x.shape).astype(dtype), mean, var


def _promoted(x, scale, bias):
    """All three in float32 at least; scale and bias, which may be numbers, with shape (channels,)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x, *(jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[-1:]) for value in (scale, bias))


def split_groups(group_size: int, images: int, devices: int = 1) -> tuple[int, list[list[int]] | None]:
    """How groups of `group_size` images lie on `devices` devices of `images` images each.

    Returns:
      (groups on each device, lists of devices that share a group, or None if no group spans devices).

    Raises:
      DropbnError: `group_size` is neither a divisor of `images` nor a multiple that divides the whole batch.
    """
    size = group_size or images * devices
    if size > 0 and images % size == 0:
        return images // size, None
    if size > 0 and size % images == 0 and devices % (size // images) == 0:
        span = size // images
        return 1, [list(range(first, first + span)) for first in range(0, devices, span)]
    raise DropbnError(
        f"bn.group_size={group_size} does not fit {devices} device(s) with {images} images each: give 0 "
        f"(the whole batch), a divisor of {images}, or a multiple of it that divides {images * devices}."
    )
