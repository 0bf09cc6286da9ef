"""ResNetV1 for small images (He et al. 2016, "Deep residual learning for image recognition", section 4.2).

As Kim et al. (2023, Table 3) ran it with 50 and 110 layers of basic blocks, after
bearpaw/pytorch-classification `models/cifar/resnet.py`: the shortcut of a widening block is a 1x1
convolution with BN (option B), the rest as in `preresnet` without pre-activation.
"""

from dropbn.layers import Size
from dropbn.models import residual
from dropbn.models.network import Section
from dropbn.order import Order, parse

BLOCK = "[conv bn relu conv bn | conv bn] relu"
HEAD = "gap dense"


def sections(config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 6n + 2 of basic blocks or 9n + 2 of bottlenecks; `config.width` the first stage's.

    Raises:
      DropbnError: a depth that is no such number, or a block that is neither kind.
    """
    return [
        Section("stem", parse("conv bn relu"), (Size(config.width, 3),)),
        *residual.stages(config, block),
        Section("head", head, (Size(config.num_classes, bias=True),)),
    ]
