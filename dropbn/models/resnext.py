"""ResNeXt (Xie et al. 2017).

`resnext`, for small images, after bearpaw's `models/cifar/resnext.py`: a 3x3 convolution to 64 channels and
three stages of bottlenecks with 256, 512 and 1024 output channels; depth 9n + 2. In the first stage, the
grouped 3x3 convolution has `config.cardinality` groups of `config.width` channels, and in each later stage
twice as many channels. ResNeXt-29, 8x64d has 34,426,698 parameters on 10 classes and 31 BN layers (Li et al.
2018, Table 2 and Fig. 4).

`resnext_imagenet`: the four stages of `resnet_imagenet` with such bottlenecks. ResNeXt-101, 64x4d, whose
published errors are those of Li's Table 5, has 83,455,272 parameters.
"""

import functools
from typing import Any

from dropbn.models import residual
from dropbn.models.network import Family

BLOCK = "[conv bn relu conv bn relu conv bn | conv bn] relu"
HEAD = "gap dense"

_GROUPED: dict[str, Any] = {"stem_width": 64, "sizes": residual.grouped_sizes}
SMALL = Family(functools.partial(residual.small, stem="conv bn relu", **_GROUPED), BLOCK, HEAD)
IMAGENET = Family(functools.partial(residual.imagenet, stem="conv bn relu maxpool", **_GROUPED), BLOCK, HEAD)
