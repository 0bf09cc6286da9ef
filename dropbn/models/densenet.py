"""DenseNet-BC for small images (Huang et al. 2017), after bearpaw's `models/cifar/densenet.py`.

DenseNet-BC(L=100, k=12): a 3x3 convolution to 2k channels, three dense blocks of (L - 4) / 6 layers, each
a 1x1 convolution to 4k and a 3x3 convolution to k channels whose output is concatenated to its input;
between the blocks "bn relu conv avgpool" halves channels and resolution. 769,162 parameters on 10 classes,
99 BN layers (Li et al. 2018, Table 2 and Fig. 4).
"""

from dropbn.errors import DropbnError
from dropbn.layers import Size
from dropbn.models.network import Section
from dropbn.order import Concat, Order, parse

BLOCK = "{bn relu conv bn relu conv}"
HEAD = "bn relu gap dense"


def sections(config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 6n + 4, `config.width` the growth rate k.

    Raises:
      DropbnError: a depth that is no such number, a block that is no dense bracket.
    """
    layers, rest = divmod(config.depth - 4, 6)
    if rest or layers < 1:
        raise DropbnError(
            f"model.depth={config.depth}: a DenseNet-BC has a depth of 6n + 4, such as 40 or 100."
        )
    if not any(isinstance(item, Concat) for item in block.items):
        raise DropbnError(f"A DenseNet block is a dense bracket, such as '{BLOCK}'; got '{block}'.")
    growth = config.width
    channels = 2 * growth
    rows = [Section("stem", parse("conv"), (Size(channels, 3),))]
    for stage in range(3):
        if stage:
            channels //= 2
            halving = (Size(channels), Size(kernel=2, stride=2))
            rows.append(Section(f"transition{stage}", parse("bn relu conv avgpool"), halving))
        for i in range(layers):
            rows.append(Section(f"stage{stage + 1}_block{i + 1}", block, (Size(4 * growth), Size(growth, 3))))
        channels += layers * growth
    return [*rows, Section("head", head, (Size(config.num_classes, bias=True),))]
