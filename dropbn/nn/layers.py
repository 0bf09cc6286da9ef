"""The Linen module that runs an order."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, unknown
from dropbn.nn import initializers
from dropbn.nn.activations import ACTIVATIONS
from dropbn.nn.kernels import convolution
from dropbn.nn.noise import Noise
from dropbn.nn.order import SIZED, Order, run

_MOST_CHANNELS = 10**8  # The size of a kernel between so many channels still fits into int64.


class Size(NamedTuple):
    """The size of one conv, dense, se, maxpool or avgpool.

    Attributes:
      features: output channels; for an se its squeezed channels. Pooling does not use it.
      kernel: side of the window, in pixels; for conv and pooling, like stride and padding.
      stride: step of the window, in pixels.
      padding: zeros on each side, in pixels; None is kernel // 2 for conv and 0 for pooling. "ceil" pads at
        the right and the bottom until a last window fits, as Caffe's pooling does.
      groups: channel groups of a conv.
      bias: whether a conv or dense has a bias.
      activation: the activation between the two layers of an se.
    """

    features: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int | Literal["ceil"] | None = None
    groups: int = 1
    bias: bool = False
    activation: str = "relu"


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
        squeezed = nn.Dense(self.features, dtype=self.dtype, name="squeeze")(x.mean((1, 2), keepdims=True))
        return x * nn.sigmoid(
            nn.Dense(x.shape[-1], dtype=self.dtype, name="excite")(self.activation(squeezed))
        )


def local_response_norm(x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> jax.Array:
    """y_c = x_c / (1 + alpha / size * sum of x^2 over the `size` channels around c)^beta.

    From Krizhevsky et al. (2012, section 3.3), with the constants of Caffe's CaffeNet.
    """
    window = (*(1,) * (x.ndim - 1), size)
    energy = jax.lax.reduce_window(jnp.square(x), 0.0, jax.lax.add, window, (1,) * x.ndim, "SAME")
    return x * (1 + alpha / size * energy) ** -beta


def sparsity_penalty(x: jax.Array, target: float, weight: float) -> jax.Array:
    """weight * sum over units of KL(target || mean of x over all but the channels), for x in [0, 1].

    KL(t || m) = t log(t / m) + (1 - t) log((1 - t) / (1 - m)).
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.clip(x.mean(tuple(range(x.ndim - 1))), 1e-6, 1 - 1e-6)
    kl = target * jnp.log(target / mean) + (1 - target) * jnp.log((1 - target) / (1 - mean))
    return weight * kl.sum()


class Parts(NamedTuple):
    """What the layers are made of, the same throughout a network.

    Attributes:
      norm: `norm(name=...)` makes a batch normalization.
      noise: `noise(name=...)` makes what `drop` stands for.
      activation: name of the activation that `act` stands for, or "".
      dtype: dtype of the computation; parameters and statistics stay float32.
      sparsity: (target, weight) of `sparse`, see `sparsity_penalty`.
      conv_init: groups of a convolution -> the initializer of its kernel.
      dense_init: initializer of dense kernels.
    """

    norm: Callable[..., nn.Module]
    noise: Callable[..., nn.Module]
    activation: str = ""
    dtype: Any = jnp.float32
    sparsity: tuple[float, float] = (0.05, 1.0)
    conv_init: Callable[[int], Callable] = initializers.create("he_fan_out")[0]
    dense_init: Callable = initializers.uniform_fan_in


class Layers(nn.Module):
    """The module that runs an order on (batch, height, width, channels) or (batch, features).

    Attributes:
      order: the order.
      sizes: one `Size` for each conv, dense, se, maxpool and avgpool of the order, in its order.
      parts: what the layers are made of.

    Raises:
      DropbnError: the number of sizes is not what the order asks for, `act` has no activation, a layer gets
        images where it wants features or the reverse, groups do not divide the channels, or there are more
        than 10^8 channels.
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
            if word == "sparse":
                self.sow("losses", name, sparsity_penalty(x, *self.parts.sparsity))
                return x
            if word == "lrn":
                return local_response_norm(x)
            activation = self.parts.activation if word == "act" else word
            if activation not in ACTIVATIONS:
                raise unknown("activation", activation, ACTIVATIONS)
            function = ACTIVATIONS[activation]
            if not isinstance(function, type):
                return function(x)
            module = function(name=name)
            return module(x, deterministic=deterministic) if isinstance(module, Noise) else module(x)

        return run(self.order, x, layer)

    def _sized(self, name, word, size, x):
        parts = self.parts
        if x.ndim != (2 if word == "dense" else 4):
            raise DropbnError(
                f"'{name}' in '{self.order}' gets an array of shape {x.shape}: dense takes (batch, "
                "features), as after gap or flatten; conv, se and pooling take images."
            )
        if size.features > _MOST_CHANNELS:
            raise DropbnError(
                f"'{name}' in '{self.order}' has {size.features} channels, more than {_MOST_CHANNELS}."
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
        if word == "se":
            activation = ACTIVATIONS[size.activation]
            return SqueezeExcite(size.features, activation, dtype=parts.dtype, name=name)(x)
        kernel, strides, padding = self._window(name, word, size, x)
        if word == "conv" and (x.shape[-1] % size.groups or size.features % size.groups):
            raise DropbnError(
                f"'{name}' in '{self.order}' has {size.groups} groups, which do not divide its {x.shape[-1]} "
                f"input and {size.features} output channels."
            )
        if word == "conv":
            return nn.Conv(
                size.features,
                kernel,
                strides,
                padding,
                feature_group_count=size.groups,
                use_bias=size.bias,
                dtype=parts.dtype,
                kernel_init=parts.conv_init(size.groups),
                conv_general_dilated=convolution.conv_general_dilated,
                name=name,
            )(x)
        if word == "maxpool":
            return nn.max_pool(x, kernel, strides, padding)
        return nn.avg_pool(x, kernel, strides, padding, count_include_pad=size.padding != "ceil")

    def _window(self, name, word, size, x):
        """The window, strides and padding of a convolution or a pooling."""
        if size.padding == "ceil":
            padding = tuple((0, (size.kernel - side) % size.stride) for side in x.shape[1:3])
        else:
            width = size.padding if size.padding is not None else size.kernel // 2 * (word == "conv")
            padding = ((width, width),) * 2
        if any(side + sum(pads) < size.kernel for side, pads in zip(x.shape[1:3], padding, strict=True)):
            raise DropbnError(
                f"'{name}' in '{self.order}' has a window of {size.kernel} pixels, and its input is "
                f"{x.shape[1]} x {x.shape[2]}: the images are too small for this network."
            )
        return (size.kernel, size.kernel), (size.stride, size.stride), padding
