"""The Linen module that runs an order."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, unknown
from dropbn.order import ACTIVATIONS, SIZED, Order, run


class Size(NamedTuple):
    """The size of one conv, dense, maxpool or avgpool.

    Attributes:
      features: output channels; unused by pooling.
      kernel: side of the window, in pixels; unused by dense.
      stride: step of the window, in pixels.
      padding: zeros on each side, in pixels; None is kernel // 2 for conv and 0 for pooling.
      groups: channel groups of a convolution.
      bias: whether conv or dense has a bias.
    """

    features: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    bias: bool = False


def uniform_fan_in(key, shape, dtype=jnp.float32):
    """U(-1/sqrt(n), 1/sqrt(n)) for n inputs of a (n, features) kernel: PyTorch's default for Linear."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Parts(NamedTuple):
    """What a model's layers are made of, the same all over a network.

    Attributes:
      norm: `norm(name=...)` makes a batch normalization.
      noise: `noise(name=...)` makes what `drop` stands for.
      activation: the activation that `act` stands for, or "".
      dtype: dtype of the computation; parameters and statistics stay float32.
      conv_init: initializer of convolution kernels; by default He's normal with fan-out,
        N(0, 2 / (kernel^2 features)), which the papers' code uses.
      dense_init: initializer of dense kernels.
    """

    norm: Callable[..., nn.Module]
    noise: Callable[..., nn.Module]
    activation: str = ""
    dtype: Any = jnp.float32
    conv_init: Callable = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    dense_init: Callable = uniform_fan_in


class Layers(nn.Module):
    """The module that runs an order, on (batch, height, width, channels) or (batch, features).

    Attributes:
      order: the order.
      sizes: one `Size` for each conv, dense, maxpool and avgpool of the order, in its order.
      parts: what the layers are made of.

    Raises:
      DropbnError: another number of sizes than the order asks for, `act` without an activation, images
        where a layer wants features or the reverse.
    """

    order: Order
    sizes: tuple[Size, ...]
    parts: Parts

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool = True, use_running_average: bool | None = None
    ) -> jax.Array:
        """Runs the layers; `use_running_average=None` follows `deterministic`."""
        if use_running_average is None:
            use_running_average = deterministic
        sized = [name for name, word in self.order.named() if word in SIZED]
        if len(sized) != len(self.sizes):
            raise DropbnError(
                f"The order '{self.order}' has {len(sized)} sized layers ({', '.join(sized)}), "
                f"the model gives {len(self.sizes)} sizes here."
            )
        sizes = dict(zip(sized, self.sizes, strict=True))

        def layer(name, word, x):
            if word == "bn":
                return self.parts.norm(name=name)(x, use_running_average=use_running_average)
            if word == "drop":
                return self.parts.noise(name=name)(x, deterministic=deterministic)
            if word in SIZED:
                return self._sized(name, word, sizes[name], x)
            if word == "gap" and x.ndim < 3:
                raise DropbnError(f"'{name}' in '{self.order}' gets features of shape {x.shape}, not images.")
            if word == "gap":
                return x.mean(tuple(range(1, x.ndim - 1)))
            if word == "flatten":
                return x.reshape(x.shape[0], -1)
            activation = self.parts.activation if word == "act" else word
            if activation not in ACTIVATIONS:
                raise unknown("activation", activation, ACTIVATIONS)
            return ACTIVATIONS[activation](x)

        return run(self.order, x, layer)

    def _sized(self, name, word, size, x):
        parts = self.parts
        if x.ndim != (2 if word == "dense" else 4):
            raise DropbnError(
                f"'{name}' in '{self.order}' gets an array of shape {x.shape}: dense takes (batch, "
                "features), as after gap or flatten; conv and pooling take images."
            )
        if word == "dense":
            bound = x.shape[-1] ** -0.5
            return nn.Dense(
                size.features,
                use_bias=size.bias,
                dtype=parts.dtype,
                kernel_init=parts.dense_init,
                bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
                name=name,
            )(x)
        padding = size.padding if size.padding is not None else size.kernel // 2 * (word == "conv")
        window = ((size.kernel, size.kernel), (size.stride, size.stride), ((padding, padding),) * 2)
        if word == "conv":
            return nn.Conv(
                size.features,
                *window,
                feature_group_count=size.groups,
                use_bias=size.bias,
                dtype=parts.dtype,
                kernel_init=parts.conv_init,
                name=name,
            )(x)
        return (nn.max_pool if word == "maxpool" else nn.avg_pool)(x, *window)
