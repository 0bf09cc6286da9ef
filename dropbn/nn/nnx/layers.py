"""The NNX module that runs an order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dropbn.errors import DropbnError
from dropbn.nn import initializers, words
from dropbn.nn.activations import ACTIVATIONS
from dropbn.nn.kernels import convolution
from dropbn.nn.nnx.activations import PReLU, RReLU
from dropbn.nn.nnx.base import Noise, Rngs
from dropbn.nn.order import Order
from dropbn.nn.words import Parts, Size

__all__ = ["Layers", "Loss", "Parts", "Size", "SqueezeExcite"]


class Loss(nnx.Variable):
    """What the training loss is to add: the penalty of the last call of a `sparse`."""


class SqueezeExcite(nnx.Module):
    """`dropbn.nn.layers.SqueezeExcite`, for inputs of a number of channels."""

    def __init__(
        self,
        num_features: int,
        squeezed: int,
        activation: Callable = jax.nn.relu,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        self.squeeze = nnx.Linear(num_features, squeezed, dtype=dtype, rngs=rngs)
        self.excite = nnx.Linear(squeezed, num_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return words.squeeze_excite(x, self.squeeze, self.activation, self.excite)


class Layers(nnx.Module):
    """The module that runs an order on (batch, height, width, channels) or (batch, features).

    Its layers have the names and the parameters of `dropbn.nn.layers.Layers`: `layers.conv1.kernel`. They are
    made at construction, and so the shape of an input has to be known then. Images of another size run too,
    unless a layer would need other parameters.

    Args:
      order: the order.
      sizes: one `Size` for each conv, dense, se, maxpool and avgpool of the order, in its order.
      parts: what the layers are made of; `norm(channels, rngs=rngs)` and `noise(rngs=rngs)` are called here.
      shape: of an input, the batch first. The size of the batch does not count.
      rngs: streams of the parameters and the noises.

    Raises:
      DropbnError: the order, the sizes and the shape do not fit each other, see `words.run`.
    """

    def __init__(
        self, order: Order, sizes: tuple[Size, ...], parts: Parts, shape: tuple[int, ...], *, rngs: nnx.Rngs
    ) -> None:
        self.order, self.sizes = order, tuple(sizes)
        self.activation, self.sparsity = parts.activation, parts.sparsity
        inputs: dict[str, tuple] = {}

        def note(name, word, x, size):
            inputs[name] = word, x.shape[-1], size
            return jnp.zeros(_shape_behind(word, x.shape, size))

        example = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(lambda x: words.run(order, self.sizes, parts.activation, x, note), example)
        for name, (word, channels, size) in inputs.items():
            setattr(self, name, _module(word, channels, size, parts, rngs))

    def __call__(
        self,
        x: jax.Array,
        *,
        deterministic: bool | None = None,
        use_running_average: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Runs the layers.

        Args:
          x: the input.
          deterministic: True switches the noises off; None leaves it to each, and so to train() and eval().
          use_running_average: which statistics BN uses; None follows `deterministic`.
          rngs: `nnx.Rngs`, a stream, or a key that seeds streams. By default each noise has its own stream.

        Raises:
          DropbnError: the input needs a layer that one of the shape at construction did not.
        """
        if use_running_average is None:
            use_running_average = deterministic
        if isinstance(rngs, jax.Array):  # Noises that got the same key would draw the same.
            rngs = nnx.Rngs(rngs)

        def layer(name, word, x, size):
            module = getattr(self, name, None)
            if module is None or (word == "conv" and module.padding != size.padding):
                raise DropbnError(
                    f"'{name}' in '{self.order}' gets an array of shape {x.shape} and was not made for it: "
                    "give the shape of this input at construction."
                )
            if word == "bn":
                return module(x, use_running_average=use_running_average)
            if word == "sparse":
                module[...] = words.sparsity_penalty(x, *self.sparsity)
                return x
            if word == "drop" or isinstance(module, Noise):
                return module(x, deterministic=deterministic, rngs=rngs)
            return module(x)

        return words.run(self.order, self.sizes, self.activation, x, layer)


def _shape_behind(word, shape, size):
    if word == "dense":
        return *shape[:-1], size.features
    if word != "conv":
        return shape
    sides = (
        (side + sum(pads) - size.kernel) // size.stride + 1
        for side, pads in zip(shape[1:3], size.padding, strict=True)
    )
    return shape[0], *sides, size.features


def _module(word, channels, size, parts, rngs):
    if word == "bn":
        return parts.norm(channels, rngs=rngs)
    if word == "drop":
        return parts.noise(rngs=rngs)
    if word == "sparse":
        return Loss(jnp.zeros(()))
    if word == "dense":
        return nnx.Linear(
            channels,
            size.features,
            use_bias=size.bias,
            dtype=parts.dtype,
            kernel_init=parts.dense_init,
            bias_init=initializers.uniform(channels**-0.5),
            rngs=rngs,
        )
    if word == "se":
        activation = ACTIVATIONS[size.activation]
        return SqueezeExcite(channels, size.features, activation, dtype=parts.dtype, rngs=rngs)
    if word == "conv":
        return nnx.Conv(
            channels,
            size.features,
            (size.kernel, size.kernel),
            (size.stride, size.stride),
            padding=size.padding,
            feature_group_count=size.groups,
            use_bias=size.bias,
            dtype=parts.dtype,
            kernel_init=parts.conv_init(size.groups),
            conv_general_dilated=convolution.conv_general_dilated,
            rngs=rngs,
        )
    return RReLU(rngs=rngs) if word == "rrelu" else PReLU(channels)
