"""Networks of inverted residual blocks: MobileNetV2 (Sandler et al. 2018), EfficientNet-B0 (Tan & Le 2019).

A block widens with a 1x1 convolution, filters each channel by itself, and narrows with a 1x1 convolution
without an activation. It has a skip where it keeps the shape; elsewhere it is a plain sequence (`unbracket`).
The first stage's block does not widen. The head begins with a convolution, so that Kim's H1 and H2 exist.

`mobilenetv2` has 3,504,872 parameters at width 100, and 6,108,776 at width 140, the 1.4 of Kim et al. (2023,
Table 6). `efficientnet` has squeeze and excitation and 5,288,548 parameters; it leaves out the stochastic
depth of the published training. Widths are per cent of the published width. As published, channels are
rounded to multiples of 8.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

from dropbn.errors import DropbnError
from dropbn.models.network import Config, Family, Section, by_depth, classifier, sizes_of
from dropbn.models.residual import bracket
from dropbn.nn.layers import Size
from dropbn.nn.order import WEIGHTS, Order, Residual, parse, unbracket

MOBILENETV2_BLOCK = "[conv bn relu6 conv bn relu6 conv bn]"
EFFICIENTNET_BLOCK = "[conv bn silu conv bn silu se conv bn]"
MOBILENETV2_HEAD = "conv bn relu6 gap dense"
EFFICIENTNET_HEAD = "conv bn silu gap dense"


class Stage(NamedTuple):
    """Blocks of one width: expansion, output channels, kernel and the first block's stride."""

    expansion: int
    channels: int
    kernel: int
    stride: int


# Table 2 of MobileNetV2 and Table 1 of EfficientNet.
MOBILENETV2 = (
    Stage(1, 16, 3, 1),
    Stage(6, 24, 3, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 3, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 3, 1),
)
EFFICIENTNET = (
    Stage(1, 16, 3, 1),
    Stage(6, 24, 3, 2),
    Stage(6, 40, 5, 2),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 5, 1),
    Stage(6, 192, 5, 2),
    Stage(6, 320, 3, 1),
)
# Blocks in each stage, by depth. A depth counts convolutions, except those of se, and the classifier. 23 is
# for tests.
MOBILENETV2_BLOCKS = {53: (1, 2, 3, 4, 3, 3, 1), 23: (1,) * 7}
EFFICIENTNET_BLOCKS = {50: (1, 2, 2, 3, 3, 4, 1), 23: (1,) * 7}


def sections(
    config: Config,
    block: Order,
    head: Order,
    *,
    stem: str,
    stages: tuple[Stage, ...],
    blocks: Mapping[int, tuple[int, ...]],
    squeeze_activation: str = "relu",
) -> list[Section]:
    """The stem, the stages of blocks, and the head.

    Args:
      config: `config.model`; its depth is a key of `blocks`, its width per cent.
      block, head: orders.
      stem: order of the stem.
      stages: the stages at width 100.
      blocks: depth -> blocks in each stage.
      squeeze_activation: activation of se. Its squeezed channels are a quarter of the block's input channels.

    Raises:
      DropbnError: the depth is another, the block is not one bracket, or its branch has fewer than two weight
        layers.
    """
    wide = config.width / 100
    channels = rounded(32 * wide)
    rows = [Section("stem", parse(stem), (Size(channels, 3, 2),))]
    for i, (stage, number) in enumerate(zip(stages, by_depth(config, blocks), strict=True)):
        features = rounded(stage.channels * wide)
        for j in range(number):
            stride = 1 if j else stage.stride
            inner = channels * stage.expansion
            widen = (Size(inner),) if stage.expansion > 1 else ()
            squeeze = itertools.repeat(Size(max(1, channels // 4), activation=squeeze_activation))
            filtered = Size(inner, stage.kernel, stride, groups=inner)
            order = block if widen else _without_widening(block)
            rows.append(
                Section(
                    f"stage{i + 1}_block{j + 1}",
                    order if stride == 1 and channels == features else unbracket(order),
                    sizes_of(order, conv=(*widen, filtered, Size(features)), se=squeeze),
                )
            )
            channels = features
    last = (Size(rounded(1280 * max(1.0, wide))),) * head.count("conv")
    return [*rows, Section("head", head, last + classifier(config, head).sizes)]


def rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8; the next one if that is more than a tenth below `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 * (nearest < 0.9 * channels)


def _without_widening(block):
    """The block without its first weight layer and the bn and activation that follow it."""
    branch = bracket(block).branch.items
    weights = [i for i, word in enumerate(branch) if word in WEIGHTS]
    if len(weights) < 2:
        raise DropbnError(
            "The branch of a block has a widening convolution and others after it, outside further brackets; "
            f"got '{block}'."
        )
    kept = Residual(Order((*branch[: weights[0]], *branch[weights[1] :])))
    return Order(tuple(kept if isinstance(item, Residual) else item for item in block.items))


MOBILENETV2_FAMILY = Family(
    functools.partial(sections, stem="conv bn relu6", stages=MOBILENETV2, blocks=MOBILENETV2_BLOCKS),
    MOBILENETV2_BLOCK,
    MOBILENETV2_HEAD,
)
EFFICIENTNET_FAMILY = Family(
    functools.partial(
        sections,
        stem="conv bn silu",
        stages=EFFICIENTNET,
        blocks=EFFICIENTNET_BLOCKS,
        squeeze_activation="silu",
    ),
    EFFICIENTNET_BLOCK,
    EFFICIENTNET_HEAD,
)
