"""SENet-154 (Hu et al. 2018), after the authors' network.

It has ResNeXt-152's bottlenecks of 64 groups with squeeze and excitation before the addition (to a 16th of
the channels), a stem of three 3x3 convolutions, half the channels in each bottleneck's first 1x1 convolution,
and 3x3 shortcut convolutions where the resolution halves. At depth 152, width 4 and cardinality 64 it has
115,088,984 parameters (timm's legacy_senet154). Its published errors are those of Li's "SENet" (2018,
Table 5).
"""

import itertools

from dropbn.models import residual
from dropbn.models.network import Config, Family, Section, by_depth, classifier, sizes_of
from dropbn.nn.layers import Size
from dropbn.nn.order import Order, parse

BLOCK = "[conv bn relu conv bn relu conv bn se | conv bn] relu"
HEAD = "gap dense"


def sections(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is a key of `residual.IMAGENET`; width and cardinality are as in `resnext`.

    Raises:
      DropbnError: the depth is another, or the branch does not have three convolutions.
    """
    stem = (Size(64, 3, 2), Size(64, 3), Size(128, 3), Size(kernel=3, stride=2, padding="ceil"))
    return [
        Section("stem", parse("conv bn relu conv bn relu conv bn relu maxpool"), stem),
        *residual.stages(config, by_depth(config, residual.IMAGENET), block, _sizes),
        classifier(config, head),
    ]


def _sizes(config, block, stage, stride):
    _, grouped, last, *_ = residual.grouped_sizes(config, block, stage, stride)
    branch = (Size(grouped.features // 2), grouped, last)
    convs = branch + residual.shortcut(block, branch, stride, kernel=3 if stride == 2 else 1)
    return sizes_of(block, conv=convs, se=itertools.repeat(Size(last.features // 16)))


FAMILY = Family(sections, BLOCK, HEAD)
