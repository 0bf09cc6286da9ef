"""A network as a list of named orders."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from dropbn.errors import DropbnError
from dropbn.nn.layers import Layers, Parts, Size
from dropbn.nn.order import SIZED, Order

Config = Any  # The `config.model` of a config: configs/base.py documents its fields.


class Section(NamedTuple):
    """A stretch of a network that one order describes: the stem, a block, a transition, the head.

    Attributes:
      name: name of its module, as in "stage1_block1".
      order: its layers.
      sizes: one `Size` for each conv, dense, se, maxpool and avgpool of the order.
    """

    name: str
    order: Order
    sizes: tuple[Size, ...] = ()


class Family(NamedTuple):
    """Networks of one kind.

    Attributes:
      sections: (config.model, order of a block, order of the head) -> the network's sections.
      block: the published order of a block.
      head: the published order of the head.
    """

    sections: Callable[..., list[Section]]
    block: str
    head: str


def classifier(config: Config, head: Order, hidden: int = 0) -> Section:
    """The head. The last dense layer has a unit for each class, the others have `hidden`; all have a bias."""
    before = (Size(hidden, bias=True),) * (head.count("dense") - 1) if hidden else ()
    return Section("head", head, (*before, Size(config.num_classes, bias=True)))


def sizes_of(order: Order, **sizes: Iterable[Size]) -> tuple[Size, ...]:
    """The sizes of an order, from the sizes of each kind of layer: conv=(...), se=(...)."""
    kinds = {word: iter(of_word) for word, of_word in sizes.items()}
    found = [next(kinds.get(word, iter(())), None) for _, word in order.named() if word in SIZED]
    return tuple(size for size in found if size is not None)


def by_depth(config: Config, numbers: Mapping[int, tuple]) -> tuple:
    """`numbers[config.depth]`, for a network that has only a few depths.

    Raises:
      DropbnError: the depth is another.
    """
    if config.depth not in numbers:
        raise DropbnError(
            f"model.depth={config.depth}: {config.name} has a depth of {', '.join(map(str, numbers))}."
        )
    return numbers[config.depth]


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
