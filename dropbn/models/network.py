"""A network as a list of named orders."""

from typing import NamedTuple

import flax.linen as nn
import jax

from dropbn.layers import Layers, Parts, Size
from dropbn.order import Order


class Section(NamedTuple):
    """A stretch of a network that one order describes: the stem, a block, a transition, the head.

    Attributes:
      name: name of its module, as in "stage1_block1".
      order: its layers.
      sizes: a `Size` for each conv, dense, maxpool and avgpool of the order.
    """

    name: str
    order: Order
    sizes: tuple[Size, ...] = ()


class Network(nn.Module):
    """Runs sections one after another.

    Attributes:
      sections: the network, from the stem to the head.
      parts: what the layers are made of.
    """

    sections: tuple[Section, ...]
    parts: Parts

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool = True, use_running_average: bool | None = None
    ) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, channels).

        `use_running_average=None` follows `deterministic`.
        """
        for section in self.sections:
            layers = Layers(section.order, section.sizes, self.parts, name=section.name)
            x = layers(x, deterministic=deterministic, use_running_average=use_running_average)
        return x
