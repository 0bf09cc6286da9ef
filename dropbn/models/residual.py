"""What the residual networks share: a stem, then stages of equal blocks."""

from collections.abc import Callable, Sequence

from dropbn.errors import DropbnError
from dropbn.models.network import Config, Section, by_depth, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import WEIGHTS, Order, Residual, parse

# (config.model, block, stage from 0, stride) -> sizes of a block.
Sizes = Callable[..., tuple[Size, ...]]

# Blocks in each stage of the networks for ImageNet, by depth in bottlenecks. 14 is for tests.
IMAGENET = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def plain_sizes(config: Config, block: Order, stage: int, stride: int) -> tuple[Size, ...]:
    """Sizes of a basic block (3x3, 3x3) or a bottleneck (1x1, 3x3, 1x1 to four times the channels).

    The first stage has `config.width` channels, each later one twice as many as the one before.

    Raises:
      DropbnError: the block is of neither kind.
    """
    channels = config.width * 2**stage
    if _convs(block) == 2:
        branch: tuple[Size, ...] = (Size(channels, 3, stride), Size(channels, 3))
    else:
        branch = (Size(channels, 1), Size(channels, 3, stride), Size(4 * channels, 1))
    return branch + shortcut(block, branch, stride)


def grouped_sizes(config: Config, block: Order, stage: int, stride: int) -> tuple[Size, ...]:
    """Sizes of a ResNeXt bottleneck, to 256 channels in the first stage (Xie et al. 2017, Table 1).

    In the first stage, its 3x3 convolution has `config.cardinality` groups of `config.width` channels, and in
    each later stage twice as many channels.

    Raises:
      DropbnError: the branch does not have three convolutions.
    """
    if _convs(block) != 3:
        raise DropbnError(f"A block of {config.name} has three convolutions in its branch; got '{block}'.")
    inner, outer = config.cardinality * config.width * 2**stage, 256 * 2**stage
    branch = (Size(inner), Size(inner, 3, stride, groups=config.cardinality), Size(outer))
    return branch + shortcut(block, branch, stride)


def small(
    config: Config,
    block: Order,
    head: Order,
    *,
    stem: str,
    stem_width: int = 0,
    sizes: Sizes = plain_sizes,
    others: int = 2,
    opening: Callable[[Order], Order] = lambda block: block,
) -> list[Section]:
    """A network for small images: a 3x3 convolution, then three stages with the same number of blocks.

    Args:
      config: `config.model`; its depth counts layers.
      block, head: orders.
      stem: order of the stem.
      stem_width: channels of the stem; 0 is `config.width`.
      sizes: (config, block, stage from 0, stride) -> sizes of a block.
      others: how many layers of `config.depth` are outside the blocks.
      opening: makes the order of a stage's first block from the order of the others.

    Raises:
      DropbnError: the depth does not divide into such blocks, or `sizes` refuses the block.
    """
    per_block = 3 * _convs(block)
    number, rest = divmod(config.depth - others, per_block)
    if rest or number < 1:
        raise DropbnError(
            f"model.depth={config.depth}: with {per_block // 3} convolutions in each block's branch it has "
            f"to be {per_block}n + {others}, such as {per_block + others} or {3 * per_block + others}."
        )
    start = Section("stem", parse(stem), (Size(stem_width or config.width, 3),))
    return [start, *stages(config, [number] * 3, block, sizes, opening), classifier(config, head)]


def imagenet(
    config: Config,
    block: Order,
    head: Order,
    *,
    stem: str,
    stem_width: int = 0,
    sizes: Sizes = plain_sizes,
    opening: Callable[[Order], Order] = lambda block: block,
) -> list[Section]:
    """A network for ImageNet: a 7x7 convolution, max pooling and four stages, otherwise like `small`.

    Raises:
      DropbnError: the depth is not a key of `IMAGENET`, or `sizes` refuses the block.
    """
    start = (Size(stem_width or config.width, 7, 2), Size(kernel=3, stride=2, padding=1))
    numbers = by_depth(config, IMAGENET)
    return [
        Section("stem", parse(stem), start),
        *stages(config, numbers, block, sizes, opening),
        classifier(config, head),
    ]


def stages(
    config: Config,
    numbers: Sequence[int],
    block: Order,
    sizes: Sizes,
    opening: Callable[[Order], Order] = lambda block: block,
) -> list[Section]:
    """Stages of `numbers` blocks. The first block of each stage except the first halves the resolution."""
    return [
        Section(
            f"stage{stage + 1}_block{i + 1}",
            block if i else opening(block),
            sizes(config, block, stage, 2 if stage and not i else 1),
        )
        for stage, number in enumerate(numbers)
        for i in range(number)
    ]


def shortcut(block: Order, branch: tuple[Size, ...], stride: int, kernel: int = 1) -> tuple[Size, ...]:
    """The size of the shortcut's convolution, if the order has a shortcut."""
    return (Size(branch[-1].features, kernel, stride),) if bracket(block).shortcut else ()


def bracket(block: Order) -> Residual:
    """The block's residual bracket.

    Raises:
      DropbnError: the block has no residual bracket, or more than one.
    """
    found = [item for item in block.items if isinstance(item, Residual)]
    if len(found) != 1:
        raise DropbnError(
            f"The block has to be one residual bracket, such as '[conv bn | conv bn]'; got '{block}'."
        )
    return found[0]


def _convs(block):
    number = bracket(block).branch.count(*WEIGHTS)
    if number not in (2, 3):
        raise DropbnError(
            f"The branch of a block has two convolutions (basic) or three (bottleneck), got {number} in "
            f"'{block}'."
        )
    return number
