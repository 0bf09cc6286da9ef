"""A small convolutional network after LeNet-5 (LeCun et al. 1998), whose pooling is part of the order.

The block is one convolution with all that follows it, pooling included. The head holds the dense layers. So
noise and BN can stand before or after pooling, only among convolutions, or only among dense layers.
"""

import itertools

from dropbn.models.network import Config, Family, Section, classifier, sizes_of
from dropbn.nn.layers import Size
from dropbn.nn.order import Order

BLOCK = "conv relu maxpool"
HEAD = "flatten dense relu dense"


def sections(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.depth` blocks of 5x5 convolutions with bias, `config.width` x 1, 2, 4, ... channels.

    A pooling is 2x2. The head's hidden dense layers have eight times `config.width` units.
    """
    return [
        *(
            Section(f"block{i + 1}", block, _sizes(block, Size(config.width * 2**i, 5, bias=True)))
            for i in range(config.depth)
        ),
        classifier(config, head, 8 * config.width),
    ]


def _sizes(block, conv):
    pool = itertools.repeat(Size(kernel=2, stride=2, padding="ceil"))
    return sizes_of(block, conv=itertools.repeat(conv), maxpool=pool, avgpool=pool)


FAMILY = Family(sections, BLOCK, HEAD)
