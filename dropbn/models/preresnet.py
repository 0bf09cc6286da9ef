"""Pre-activation ResNet (He et al. 2016, "Identity mappings in deep residual networks").

`preresnet`, for small images, is the variant of the papers' code (bearpaw/pytorch-classification,
`models/cifar/preresnet.py`): a 3x3 convolution, three stages of `config.width` x 1, 2, 4 channels whose
second and third halve the resolution, and the head "bn relu gap dense". Convolutions have no bias; a 1x1
shortcut convolution without BN acts on the raw input where the shape changes.

The block's order decides its kind: two convolutions are a basic block (depth 6n + 2), three are a bottleneck
(depth 9n + 2). "PreResNet-110" is the name of two networks. For Kim et al. (2023) it has 54 basic blocks,
depth 110 here. For Li et al. (2018) it has 54 bottlenecks, depth 164 here: the bearpaw code of January 2018
built bottlenecks for every depth of 44 or more. Li's has 163 BN layers and 1,703,258 parameters on 10
classes, as in the paper's figures and its Table 2.

`preresnet_imagenet`: a 7x7 convolution and max pooling, then four stages of bottlenecks, depth 50, 101, 152
or 200, width 64. Depth 200 is Li's "ResNet-200 (pre-activation)". With the stride in the 3x3 convolution and
the pre-activation of a stage's first block before its shortcut too, depths 50 and 101 are timm's resnetv2_50
and resnetv2_101 (25,549,352 and 44,541,480 parameters), which Kim et al. trained on Caltech-101 and
Oxford-IIIT Pet.
"""

import functools

from dropbn.models import residual
from dropbn.models.network import Family
from dropbn.nn.order import hoist

BLOCK = "[bn relu conv bn relu conv | conv]"
BOTTLENECK = "[bn relu conv bn relu conv bn relu conv | conv]"
HEAD = "bn relu gap dense"

SMALL = Family(functools.partial(residual.small, stem="conv"), BLOCK, HEAD)
IMAGENET = Family(functools.partial(residual.imagenet, stem="conv maxpool", opening=hoist), BOTTLENECK, HEAD)
