"""DenseNet (Huang et al. 2017).

A layer of DenseNet-BC is a 1x1 convolution to 4k and a 3x3 convolution to k channels. Its output is
concatenated to its input. Between blocks of layers, "bn relu conv avgpool" halves channels and resolution.

`densenet`, for small images, after bearpaw's `models/cifar/densenet.py`: a 3x3 convolution to 2k channels and
three blocks of (L - 4) / 6 layers. DenseNet-BC(L=100, k=12) has 769,162 parameters on 10 classes and 99 BN
layers (Li et al. 2018, Table 2 and Fig. 4). A block with one convolution, "{bn relu conv}", makes the plain
DenseNet: (L - 4) / 3 layers of one 3x3 convolution, 16 channels in the stem, and no halving of channels. With
L=40 and k=12 it has 1,019,722 parameters. "{bn relu conv drop}" has dropout after every convolution except
the stem's. It follows the convolution between two blocks too, as in the authors' code
(liuzhuang13/DenseNet, models/densenet.lua).

`densenet_imagenet`: a 7x7 convolution to 2k channels with BN and max pooling, and four blocks. DenseNet-169
(k = 32) has 14,149,480 parameters (torchvision).
"""

from dropbn.errors import DropbnError
from dropbn.models.network import Config, Family, Section, by_depth, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import Concat, Order, parse

BLOCK = "{bn relu conv bn relu conv}"
PLAIN_BLOCK = "{bn relu conv}"
HEAD = "bn relu gap dense"

# Layers in each block of the networks for ImageNet, by depth. 13 is for tests.
IMAGENET_LAYERS = {13: (1, 1, 1, 1), 121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


def small(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is 6n + 4 (3n + 4 for a plain DenseNet), `config.width` the growth rate k.

    Raises:
      DropbnError: the depth is not such a number, or the block is not a dense bracket.
    """
    per_layer = 3 * block.count("conv")
    layers, rest = divmod(config.depth - 4, per_layer) if per_layer else (0, 0)
    if rest or layers < 1:
        raise DropbnError(
            f"model.depth={config.depth}: a DenseNet with the block '{block}' has a depth of "
            f"{per_layer}n + 4, such as 40 or 100."
        )
    stem = Section("stem", parse("conv"), (Size(_stem_width(config, block), 3),))
    rows = _blocks(config, [layers] * 3, block, _stem_width(config, block))
    return [stem, *rows, classifier(config, head)]


def imagenet(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.depth` is a key of `IMAGENET_LAYERS`, `config.width` the growth rate k.

    Raises:
      DropbnError: the depth is another, or the block is not a dense bracket.
    """
    numbers = by_depth(config, IMAGENET_LAYERS)
    stem = (Size(2 * config.width, 7, 2), Size(kernel=3, stride=2, padding=1))
    return [
        Section("stem", parse("conv bn relu maxpool"), stem),
        *_blocks(config, numbers, block, 2 * config.width),
        classifier(config, head),
    ]


def _blocks(config, numbers, block, channels):
    if not any(isinstance(item, Concat) for item in block.items):
        raise DropbnError(f"A DenseNet block is a dense bracket, such as '{BLOCK}'; got '{block}'.")
    is_plain = block.count("conv") == 1
    growth, rows = config.width, []
    layer = (Size(growth, 3),) if is_plain else (Size(4 * growth), Size(growth, 3))
    is_dropped = is_plain and "conv drop" in str(block)
    transition = parse("bn relu conv drop avgpool" if is_dropped else "bn relu conv avgpool")
    for stage, layers in enumerate(numbers):
        if stage:
            channels //= 1 if is_plain else 2
            halving = (Size(channels), Size(kernel=2, stride=2))
            rows.append(Section(f"transition{stage}", transition, halving))
        for i in range(layers):
            rows.append(Section(f"stage{stage + 1}_block{i + 1}", block, layer))
        channels += layers * growth
    return rows


def _stem_width(config, block):
    return 16 if block.count("conv") == 1 else 2 * config.width


SMALL = Family(small, BLOCK, HEAD)
IMAGENET = Family(imagenet, BLOCK, HEAD)
