"""Pre-activation ResNet for small images (He et al. 2016, "Identity mappings in deep residual networks").

The variant of the papers' code (bearpaw/pytorch-classification, `models/cifar/preresnet.py`): a 3x3
convolution, three stages of `width` x 1, 2, 4 channels whose second and third halve the resolution,
and the head "bn relu gap dense". Convolutions have no bias; a 1x1 shortcut convolution without BN acts on
the raw input where the shape changes.

The block's order decides its kind: two convolutions are a basic block (3x3, 3x3), three are a bottleneck
(1x1, 3x3, 1x1 with four times the channels). Mind the names: "PreResNet-110" is 54 basic blocks for Kim et
al. (2023), depth 110 here, but 54 bottlenecks for Li et al. (2018), depth 164 here: the bearpaw code of
January 2018 built bottlenecks for every depth of 44 or more (163 BN layers, 1,703,258 parameters on 10
classes, as the paper's figures and Table 2 have it).
"""

from dropbn.layers import Size
from dropbn.models import residual
from dropbn.models.network import Section
from dropbn.order import Order, parse

BLOCK = "[bn relu conv bn relu conv | conv]"
BOTTLENECK = "[bn relu conv bn relu conv bn relu conv | conv]"
HEAD = "bn relu gap dense"


def sections(config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 6n + 2 of basic blocks or 9n + 2 of bottlenecks; `config.width` the first stage's.

    Raises:
      DropbnError: a depth that is no such number, or a block that is neither kind.
    """
    return [
        Section("stem", parse("conv"), (Size(config.width, 3),)),
        *residual.stages(config, block),
        Section("head", head, (Size(config.num_classes, bias=True),)),
    ]
