"""Wide residual network, WRN-depth-k (Zagoruyko & Komodakis 2016), after bearpaw's `models/cifar/wrn.py`.

Basic pre-activation blocks of 16k, 32k, 64k channels after a 3x3 convolution to 16. The first block of a
stage shares its pre-activation with the shortcut: "bn relu [conv bn relu conv | conv]", derived from the
block by `hoist`. WRN-28-10 has 36,479,194 parameters on 10 classes and 25 BN layers (Li et al. 2018,
Table 2 and Fig. 4). `config.width` is 16k.
"""

from dropbn.layers import Size
from dropbn.models import residual
from dropbn.models.network import Section
from dropbn.order import Order, hoist, parse

BLOCK = "[bn relu conv bn relu conv | conv]"
HEAD = "bn relu gap dense"


def sections(config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 6n + 4: the shortcuts of the three stages count as layers in a WRN's name.

    Raises:
      DropbnError: a depth that is no such number, or a block that is not basic or a bottleneck.
    """
    return [
        Section("stem", parse("conv"), (Size(16, 3),)),
        *residual.stages(config, block, others=4, opening=hoist),
        Section("head", head, (Size(config.num_classes, bias=True),)),
    ]
