"""ResNetV1 (He et al. 2016, "Deep residual learning for image recognition").

`resnet`, for small images (section 4.2), as Kim et al. (2023, Table 3) ran it with 50 and 110 layers of basic
blocks, after bearpaw/pytorch-classification `models/cifar/resnet.py`. The shortcut of a widening block is a
1x1 convolution with BN (option B); the rest is as in `preresnet`, without pre-activation. `config.depth` is
6n + 2 with basic blocks and 9n + 2 with bottlenecks.

`resnet_imagenet`: a 7x7 convolution and max pooling, then four stages of bottlenecks, depth 50, 101, 152 or
200, width 64, the stride in the 3x3 convolution as in torchvision (25,557,032 parameters at depth 50).
"""

import functools

from dropbn.models import residual
from dropbn.models.network import Family

BLOCK = "[conv bn relu conv bn | conv bn] relu"
BOTTLENECK = "[conv bn relu conv bn relu conv bn | conv bn] relu"
HEAD = "gap dense"

SMALL = Family(functools.partial(residual.small, stem="conv bn relu"), BLOCK, HEAD)
IMAGENET = Family(functools.partial(residual.imagenet, stem="conv bn relu maxpool"), BOTTLENECK, HEAD)
