"""The Linen module that runs an order."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.nn import initializers, words
from dropbn.nn.activations import ACTIVATIONS
from dropbn.nn.kernels import convolution
from dropbn.nn.noise import Noise
from dropbn.nn.order import Order
from dropbn.nn.words import Parts, Size

__all__ = ["Layers", "Parts", "Size", "SqueezeExcite"]


class SqueezeExcite(nn.Module):
    """y = x * sigmoid(W2 f(W1 mean(x) + b1) + b2), with the mean over pixels (Hu et al. 2018, eq. 2 to 4).

    Attributes:
      features: squeezed channels, rows of W1.
      activation: f.
      dtype: dtype of the computation.
    """

    features: int
    activation: Callable = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        squeeze = nn.Dense(self.features, dtype=self.dtype, name="squeeze")
        excite = nn.Dense(x.shape[-1], dtype=self.dtype, name="excite")
        return words.squeeze_excite(x, squeeze, self.activation, excite)


class Layers(nn.Module):
    """The module that runs an order on (batch, height, width, channels) or (batch, features).

    Attributes:
      order: the order.
      sizes: one `Size` for each conv, dense, se, maxpool and avgpool of the order, in its order.
      parts: what the layers are made of.

    Raises:
      DropbnError: the order, the sizes and the input do not fit each other, see `words.run`.
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

        def layer(name, word, x, size):
            if word == "bn":
                return self.parts.norm(name=name)(x, use_running_average=use_running_average)
            if word == "sparse":
                self.sow("losses", name, words.sparsity_penalty(x, *self.parts.sparsity))
                return x
            module = self._module(name, word, x, size)
            is_noise = word == "drop" or isinstance(module, Noise)
            return module(x, deterministic=deterministic) if is_noise else module(x)

        return words.run(self.order, self.sizes, self.parts.activation, x, layer)

    def _module(self, name, word, x, size):
        parts = self.parts
        if word == "drop":
            return parts.noise(name=name)
        if word == "dense":
            return nn.Dense(
                size.features,
                use_bias=size.bias,
                dtype=parts.dtype,
                kernel_init=parts.dense_init,
                bias_init=initializers.uniform(x.shape[-1] ** -0.5),
                name=name,
            )
        if word == "se":
            return SqueezeExcite(size.features, ACTIVATIONS[size.activation], dtype=parts.dtype, name=name)
        if word == "conv":
            return nn.Conv(
                size.features,
                (size.kernel, size.kernel),
                (size.stride, size.stride),
                size.padding,
                feature_group_count=size.groups,
                use_bias=size.bias,
                dtype=parts.dtype,
                kernel_init=parts.conv_init(size.groups),
                conv_general_dilated=convolution.conv_general_dilated,
                name=name,
            )
        return ACTIVATIONS[word](name=name)
