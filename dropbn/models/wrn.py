"""Wide residual network, WRN-depth-k (Zagoruyko & Komodakis 2016), after bearpaw's `models/cifar/wrn.py`.

After a 3x3 convolution to 16 channels it has basic pre-activation blocks of 16k, 32k and 64k channels. In the
first block of a stage, branch and shortcut share the pre-activation: `hoist` makes
"bn relu [conv bn relu conv | conv]" of the block. WRN-28-10 has 36,479,194 parameters on 10 classes and 25 BN
layers (Li et al. 2018, Table 2 and Fig. 4). `config.width` is 16k; `config.depth` is 6n + 4, because the
shortcuts of the three stages count as layers in a WRN's name.
"""

import functools

from dropbn.models import residual
from dropbn.models.network import Family
from dropbn.nn.order import hoist

BLOCK = "[bn relu conv bn relu conv | conv]"
HEAD = "bn relu gap dense"

FAMILY = Family(
    functools.partial(residual.small, stem="conv", stem_width=16, others=4, opening=hoist), BLOCK, HEAD
)
