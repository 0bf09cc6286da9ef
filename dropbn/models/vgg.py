"""VGG with BN for small images (Simonyan & Zisserman 2015), after bearpaw's `models/cifar/vgg.py`.

3x3 convolutions with bias in five groups, each followed by 2x2 max pooling, and one dense layer; hidden dense
layers of another head have as many units as the last group has channels. The block is the unit around one
convolution, so that "conv bn relu" and "conv relu bn" are BN before and after the activation. VGG-16 has
14,728,266 parameters on 10 classes.
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

    Groups double the channels up to eight times the first's.

    Raises:
      DropbnError: another depth.
    """
    rows = []
    for group, number in enumerate(by_depth(config, GROUPS), 1):
        size = Size(config.width * min(2 ** (group - 1), 8), 3, bias=True)
        rows += [Section(f"group{group}_conv{i + 1}", block, (size,)) for i in range(number)]
        rows.append(Section(f"group{group}_pool", parse("maxpool"), (Size(kernel=2, stride=2),)))
    return [*rows, classifier(config, head, 8 * config.width)]


FAMILY = Family(sections, BLOCK, HEAD)
