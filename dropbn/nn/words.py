"""What the words of an order compute, whichever of Flax's APIs their layers are made in."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, unknown
from dropbn.nn import initializers
from dropbn.nn import order as orders
from dropbn.nn.activations import ACTIVATIONS

_MOST_CHANNELS = 10**8  # The size of a kernel between so many channels still fits into int64.


class Size(NamedTuple):
    """The size of one conv, dense, se, maxpool or avgpool.

    Attributes:
      features: output channels; for an se its squeezed channels. Pooling does not use it.
      kernel: side of the window, in pixels; for conv and pooling, like stride and padding.
      stride: step of the window, in pixels.
      padding: zeros on each side, in pixels; None is kernel // 2 for conv and 0 for pooling. "ceil" pads at
        the right and the bottom until a last window fits, as Caffe's pooling does.
        `run` spells it out as (before, after) of both dimensions.
      groups: channel groups of a conv.
      bias: whether a conv or dense has a bias.
      activation: the activation between the two layers of an se.
    """

    features: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int | Literal["ceil"] | tuple[tuple[int, int], ...] | None = None
    groups: int = 1
    bias: bool = False
    activation: str = "relu"


class Parts(NamedTuple):
    """What the layers are made of, the same throughout a network.

    Attributes:
      norm: `norm(name=...)` makes a batch normalization; in NNX `norm(channels, rngs=...)`.
      noise: `noise(name=...)` makes what `drop` stands for; in NNX `noise(rngs=...)`.
      activation: name of the activation that `act` stands for, or "".
      dtype: dtype of the computation; parameters and statistics stay float32.
      sparsity: (target, weight) of `sparse`, see `sparsity_penalty`.
      conv_init: groups of a convolution -> the initializer of its kernel.
      dense_init: initializer of dense kernels.
    """

    norm: Callable[..., Any]
    noise: Callable[..., Any]
    activation: str = ""
    dtype: Any = jnp.float32
    sparsity: tuple[float, float] = (0.05, 1.0)
    conv_init: Callable[[int], Callable] = initializers.create("he_fan_out")[0]
    dense_init: Callable = initializers.uniform_fan_in


def run(
    order: orders.Order,
    sizes: tuple[Size, ...],
    activation: str,
    x: jax.Array,
    layer: Callable[[str, str, jax.Array, Size], jax.Array],
) -> jax.Array:
    """Runs `order` on `x`.

    Args:
      order: the order.
      sizes: one `Size` for each conv, dense, se, maxpool and avgpool of the order, in its order.
      activation: what `act` stands for.
      x: (batch, height, width, channels) or (batch, features).
      layer: `layer(name, word, x, size)` gives the output of a layer that is a module or tells its input, of
        the words conv, dense, se, bn, drop, sparse, prelu and rrelu.

    Raises:
      DropbnError: the number of sizes is not what the order asks for, `act` has no activation, a layer gets
        images where it wants features or the reverse, groups do not divide the channels, or there are more
        than 10^8 channels.
    """
    sized = [name for name, word in order.named() if word in orders.SIZED]
    if len(sized) != len(sizes):
        raise DropbnError(
            f"The order '{order}' has {len(sized)} sized layers ({', '.join(sized)}), "
            f"the model gives {len(sizes)} sizes here."
        )
    size_of = dict(zip(sized, sizes, strict=True))

    def word_of(name, word, x):
        if word in orders.SIZED:
            size = size_of[name]
            padding = _padding(order, name, word, size, x)
            if word in ("maxpool", "avgpool"):
                return _pool(word, size, padding, x)
            return layer(name, word, x, size._replace(padding=padding))
        if word in ("bn", "drop", "sparse"):
            return layer(name, word, x, Size())
        if word == "gap" and x.ndim < 3:
            raise DropbnError(f"'{name}' in '{order}' gets features of shape {x.shape}, not images.")
        if word == "gap":
            return x.mean(tuple(range(1, x.ndim - 1)))
        if word == "flatten":
            return x.reshape(x.shape[0], -1)
        if word == "lrn":
            return local_response_norm(x)
        word = activation if word == "act" else word
        if word not in ACTIVATIONS:
            raise unknown("activation", word, ACTIVATIONS)
        function = ACTIVATIONS[word]
        return layer(name, word, x, Size()) if isinstance(function, type) else function(x)

    return orders.run(order, x, word_of)


def _padding(order, name, word, size, x):
    """(before, after) of both dimensions of a window; refuses a size that does not fit `x`."""
    if x.ndim != (2 if word == "dense" else 4):
        raise DropbnError(
            f"'{name}' in '{order}' gets an array of shape {x.shape}: dense takes (batch, "
            "features), as after gap or flatten; conv, se and pooling take images."
        )
    if size.features > _MOST_CHANNELS:
        raise DropbnError(f"'{name}' in '{order}' has {size.features} channels, more than {_MOST_CHANNELS}.")
    if word in ("dense", "se"):
        return None
    if size.padding == "ceil":
        padding = tuple((0, (size.kernel - side) % size.stride) for side in x.shape[1:3])
    else:
        width = size.padding if size.padding is not None else size.kernel // 2 * (word == "conv")
        padding = ((width, width),) * 2
    if any(side + sum(pads) < size.kernel for side, pads in zip(x.shape[1:3], padding, strict=True)):
        raise DropbnError(
            f"'{name}' in '{order}' has a window of {size.kernel} pixels, and its input is "
            f"{x.shape[1]} x {x.shape[2]}: the images are too small for this network."
        )
    if word == "conv" and (x.shape[-1] % size.groups or size.features % size.groups):
        raise DropbnError(
            f"'{name}' in '{order}' has {size.groups} groups, which do not divide its {x.shape[-1]} "
            f"input and {size.features} output channels."
        )
    return padding


def _pool(word, size, padding, x):
    kernel, strides = (size.kernel, size.kernel), (size.stride, size.stride)
    if word == "maxpool":
        return nn.max_pool(x, kernel, strides, padding)
    return nn.avg_pool(x, kernel, strides, padding, count_include_pad=size.padding != "ceil")


def squeeze_excite(x: jax.Array, squeeze: Callable, activation: Callable, excite: Callable) -> jax.Array:
    """y = x * sigmoid(excite(activation(squeeze(mean of x over pixels)))) (Hu et al. 2018, eq. 2 to 4)."""
    return x * nn.sigmoid(excite(activation(squeeze(x.mean((1, 2), keepdims=True)))))


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
