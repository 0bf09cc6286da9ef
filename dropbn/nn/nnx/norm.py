"""Batch normalization over a stated group of images, as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dropbn.errors import DropbnError
from dropbn.nn import norm


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` whose statistics cover a stated number of images on any machine.

    It computes what `dropbn.nn.norm.BatchNorm` does, whose docstring has the equations. The keywords are
    those of `flax.nnx.BatchNorm`. The default momentum is 0.9. use_fast_variance and promote_dtype have no
    effect: the variance is always about the first image's mean and in float32 at least.

    Attributes (in addition to those of `flax.nnx.BatchNorm`):
      group_size: images per statistic. 0 is the whole batch, over all devices of `axis_name`. Otherwise
        a divisor of the device's batch (several groups a device) or a multiple (a group spans devices).

    Raises:
      DropbnError: the `group_size` does not fit, channels are not last, or a `mask` is given.
    """

    def __init__(
        self, num_features: int, *, group_size: int = 0, momentum: float = 0.9, rngs: nnx.Rngs, **options: Any
    ) -> None:
        super().__init__(num_features, momentum=momentum, rngs=rngs, **{"use_fast_variance": False} | options)
        self.group_size = group_size

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes `x` of shape (batch, ..., channels); returns the same shape."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise DropbnError(
                "BatchNorm does not know which statistics to use: give use_running_average= at construction "
                "or at the call, or call train() or eval() of the model."
            )
        norm.check_options(self, x, mask)
        if x.shape[-1] != self.num_features:
            raise DropbnError(f"BatchNorm of {self.num_features} channels gets an array of shape {x.shape}.")
        scale = 1.0 if self.scale is None else self.scale[...]
        bias = 0.0 if self.bias is None else self.bias[...]
        given = x, scale, bias, self.mean[...], self.var[...]
        dtype = self.dtype or jnp.result_type(*given)  # As in Flax, float32 without dtype= even for bfloat16.
        if use_running_average:
            return norm.by_running(self.epsilon, dtype, *given)
        number, across = norm.groups_of(self, len(x))
        y, mean, var = norm.by_groups(number, across, self.epsilon, self.momentum, dtype, *given)
        self.mean[...], self.var[...] = lax.stop_gradient((mean, var))
        return y
