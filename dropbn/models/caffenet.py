"""CaffeNet128 of ducha-aiki/caffenet-benchmark: CaffeNet for 128x128 images, without or with LRN.

It has five convolutions and two hidden dense layers, all with a bias; the 2nd, 4th and 5th convolution have
two groups. The block is the order around one convolution. The head holds the dense layers, with dropout after
each as in the benchmark. "conv bn relu" and "conv relu bn" put BN before and after the activation; the places
`before` and `after` derive both. `caffenet_lrn` has local response normalization after the first two
poolings. With maxout, a layer has 2 x 1/sqrt(2) times as many channels before the activation.
"""

import functools

from dropbn.models.network import Config, Family, Section, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import Order, parse

BLOCK = "conv relu"
HEAD = "flatten dense relu drop dense relu drop dense"

CONVS = (
    Size(96, 11, 4, padding=0, bias=True),
    Size(256, 5, groups=2, bias=True),
    Size(384, 3, bias=True),
    Size(384, 3, groups=2, bias=True),
    Size(256, 3, groups=2, bias=True),
)
POOLED = (1, 2, 5)


def sections(config: Config, block: Order, head: Order, *, pool: str = "maxpool") -> list[Section]:
    """`config.width` units in each hidden dense layer, 2048 as in the benchmark; depth is not used."""
    is_maxout = "maxout" in (config.activation, *(word for _, word in block.named()))

    def units(features):
        return 2 * round(features / 2**0.5) if is_maxout else features

    rows = []
    for i, size in enumerate(CONVS, 1):
        rows.append(Section(f"conv{i}", block, (size._replace(features=units(size.features)),)))
        if i in POOLED:
            order = parse(pool if i < 5 else "maxpool")
            rows.append(Section(f"pool{i}", order, (Size(kernel=3, stride=2, padding="ceil"),)))
    return [*rows, classifier(config, head, units(config.width))]


FAMILY = Family(sections, BLOCK, HEAD)
LRN = Family(functools.partial(sections, pool="maxpool lrn"), BLOCK, HEAD)
