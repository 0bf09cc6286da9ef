"""VGG with BN for small images (Simonyan & Zisserman 2015), after bearpaw's `models/cifar/vgg.py`.

It has five groups of 3x3 convolutions with a bias, 2x2 max pooling after each group, and one dense layer. If
another head has hidden dense layers, they have as many units as the last group has channels. The block is the
order around one convolution: "conv bn relu" and "conv relu bn" put BN before and after the activation. VGG-16
has 14,728,266 parameters on 10 classes.
"""

from dropbn.models.network import Config, Family, Section, by_depth, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import Order, parse

BLOCK = "conv bn relu"
HEAD = "flatten dense"

# Convolutions in each group, by depth.
GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def sections(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 11, 13, 16 or 19; `config.width` the first group's channels (64 as published).

    Each group has twice the channels of the one before, up to eight times the first's.

    Raises:
      DropbnError: the depth is another.
    """
    rows = []
    for group, number in enumerate(by_depth(config, GROUPS), 1):
        size = Size(config.width * min(2 ** (group - 1), 8), 3, bias=True)
        rows += [Section(f"group{group}_conv{i + 1}", block, (size,)) for i in range(number)]
        rows.append(Section(f"group{group}_pool", parse("maxpool"), (Size(kernel=2, stride=2),)))
    return [*rows, classifier(config, head, 8 * config.width)]


FAMILY = Family(sections, BLOCK, HEAD)
