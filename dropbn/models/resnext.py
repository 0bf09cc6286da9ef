"""ResNeXt for small images (Xie et al. 2017), after bearpaw's `models/cifar/resnext.py`.

ResNeXt-29, 8x64d: a 3x3 convolution to 64 channels, three stages of bottlenecks with 256, 512, 1024
output channels, whose grouped 3x3 convolution is `config.cardinality` groups of `config.width` channels
in the first stage and twice that in each next. 34,426,698 parameters on 10 classes, 31 BN layers (Li et
al. 2018, Table 2 and Fig. 4).
"""

from dropbn.errors import DropbnError
from dropbn.layers import Size
from dropbn.models import residual
from dropbn.models.network import Section
from dropbn.order import WEIGHTS, Order, parse

BLOCK = "[conv bn relu conv bn relu conv bn | conv bn] relu"
HEAD = "gap dense"


def sections(config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 9n + 2; `config.width` channels in each of `config.cardinality` groups.

    Raises:
      DropbnError: a depth that is no such number, a branch without three convolutions.
    """
    blocks, rest = divmod(config.depth - 2, 9)
    if rest or blocks < 1:
        raise DropbnError(f"model.depth={config.depth}: a ResNeXt has a depth of 9n + 2, such as 11 or 29.")
    if residual.bracket(block).branch.count(*WEIGHTS) != 3:
        raise DropbnError(f"A ResNeXt block's branch has three convolutions, as in '{BLOCK}'; got '{block}'.")
    rows = [Section("stem", parse("conv bn relu"), (Size(64, 3),))]
    for stage in range(3):
        inner, outer = config.cardinality * config.width * 2**stage, 256 * 2**stage
        for i in range(blocks):
            stride = 2 if stage and not i else 1
            branch = (Size(inner), Size(inner, 3, stride, groups=config.cardinality), Size(outer))
            sizes = residual.with_shortcut(block, branch, stride)
            rows.append(Section(f"stage{stage + 1}_block{i + 1}", block, sizes))
    return [*rows, Section("head", head, (Size(config.num_classes, bias=True),))]
