"""GoogLeNet (Szegedy et al. 2015) without its auxiliary classifiers, as caffenet-benchmark's GoogLeNet128.

The block is the order around one convolution: "conv relu", "conv bn relu" or "conv relu bn". The inception
blocks are made of it. Convolutions have a bias. Without BN it has 6,998,552 parameters on 1000 classes.
"""

from dropbn.models.network import Config, Family, Section, by_depth, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import Order, parse

BLOCK = "conv relu"
HEAD = "gap drop dense"

# Output channels of 1x1; 1x1 then 3x3; 1x1 then 5x5; 1x1 after pooling (Table 1 of the paper).
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
DEPTHS = {22: tuple(INCEPTIONS), 10: ("3a", "4a", "5a")}


def sections(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.width` is per cent of the published channels; depth 10 has only the inceptions 3a, 4a and 5a.

    Raises:
      DropbnError: the depth is neither 22 nor 10.
    """

    def conv(features, kernel=1, stride=1):
        return Size(max(1, features * config.width // 100), kernel, stride, bias=True)

    halving = Size(kernel=3, stride=2, padding="ceil")
    unit = str(block)
    inception = parse(f"{{{unit} | {unit} {unit} | {unit} {unit} | maxpool {unit}}}")
    stem = (conv(64, 7, 2), halving, conv(64), conv(192, 3), halving)
    rows = [Section("stem", parse(f"{unit} maxpool {unit} {unit} maxpool"), stem)]
    for name in by_depth(config, DEPTHS):
        one, to_three, three, to_five, five, pooled = INCEPTIONS[name]
        if name in ("4a", "5a"):
            rows.append(Section(f"pool{int(name[0]) - 1}", parse("maxpool"), (halving,)))
        sizes = (
            conv(one),
            conv(to_three),
            conv(three, 3),
            conv(to_five),
            conv(five, 5),
            Size(kernel=3, padding=1),
            conv(pooled),
        )
        rows.append(Section(f"inception{name}", inception, sizes))
    return [*rows, classifier(config, head)]


FAMILY = Family(sections, BLOCK, HEAD)
