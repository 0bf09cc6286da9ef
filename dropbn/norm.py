"""Batch normalization over a stated group of images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dropbn.errors import DropbnError


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` whose statistics cover a stated number of images on any machine.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with mean and (biased) variance over the group
    an image belongs to and over its pixels (Ioffe & Szegedy 2015), in float32 at least. How many
    images share a statistic is part of an experiment, so it is stated and not left to the number of
    devices.

    Running statistics follow `running = momentum * running + (1 - momentum) * batch`, where `batch` is
    the average over this device's groups; a training step averages them over devices. The running
    variance is the biased one, as in Flax; PyTorch's is larger by m / (m - 1) for m values a channel.

    Attributes (beside those of `flax.linen.BatchNorm`; the default momentum here is 0.9, and the variance is
    always the two-pass one in float32 at least, because the fast form loses that of a channel with a large
    mean, so that use_fast_variance and force_float32_reductions have no effect):
      group_size: images per statistic. 0 is the whole batch, over all devices of `axis_name`. Otherwise
        a divisor of the device's batch (several groups a device) or a multiple (a group spans devices).
      axis_name: the device axis of `pmap`; None where there is one device.

    Raises:
      DropbnError: a `group_size` that does not fit, channels that are not last, a `mask`.
    """

    momentum: float = 0.9
    use_fast_variance: bool = False
    group_size: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None, *, mask=None) -> jax.Array:
        """Normalizes `x` of shape (batch, ..., channels); returns the same shape."""
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if self.axis not in (-1, x.ndim - 1) or mask is not None or self.axis_index_groups is not None:
            raise DropbnError(
                "dropbn.norm.BatchNorm takes channels on the last axis, group_size for axis_index_groups, "
                "and no mask; use flax.linen.BatchNorm where you need those."
            )
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        affine = self.use_scale or self.use_bias
        dtype = self.dtype or (jnp.promote_types(x.dtype, self.param_dtype) if affine else x.dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if use_running_average:
            groups, mean, var = x[None], running_mean.value[None], running_var.value[None]
        else:
            groups, mean, var = self._statistics(x)
            if not self.is_initializing():
                for running, batch in ((running_mean, mean), (running_var, var)):
                    running.value = self.momentum * running.value + (1 - self.momentum) * batch.mean(0)
        wide = (mean.shape[0], *(1,) * (x.ndim - 1), channels)
        factor = lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", self.scale_init, (channels,), self.param_dtype)
        y = (groups - mean.reshape(wide)) * factor.reshape(wide)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (channels,), self.param_dtype)
        return y.reshape(x.shape).astype(dtype)

    def _statistics(self, x):
        """`x` as (groups, images, ..., channels), with mean and variance of shape (groups, channels)."""
        axis_name = None if self.is_initializing() else self.axis_name
        images = x.shape[0]
        devices = lax.axis_size(axis_name) if axis_name else 1
        if self.is_initializing():
            num_groups, together = 1, None
        else:
            num_groups, together = split_groups(self.group_size, images, devices)
        groups = x.reshape(num_groups, images // num_groups, *x.shape[1:])
        axes = tuple(range(1, groups.ndim - 1))

        def mean_over_group(values):
            local = values.mean(axes)
            if together is None:
                return local
            return lax.pmean(local, axis_name, axis_index_groups=together if len(together) > 1 else None)

        mean = mean_over_group(groups)
        wide = (num_groups, *(1,) * (x.ndim - 1), x.shape[-1])
        return groups, mean, mean_over_group(jnp.square(groups - mean.reshape(wide)))


def split_groups(group_size: int, images: int, devices: int = 1) -> tuple[int, list[list[int]] | None]:
    """How groups of `group_size` images lie on `devices` devices of `images` images each.

    Returns:
      (groups on each device, lists of devices that share a group or None where no group is shared).

    Raises:
      DropbnError: `group_size` is no divisor of `images` and no multiple that divides the whole batch.
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
