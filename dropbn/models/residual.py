"""What the residual networks for small images share: three stages of equal blocks."""

from collections.abc import Callable

from dropbn.errors import DropbnError
from dropbn.layers import Size
from dropbn.models.network import Section
from dropbn.order import WEIGHTS, Order, Residual


def stages(
    config, block: Order, *, others: int = 2, opening: Callable[[Order], Order] = lambda block: block
) -> list[Section]:
    """Three stages of `config.width` x 1, 2, 4 channels; the second and third halve the resolution.

    Args:
      config: `config.model`: depth and width.
      block: order of a block: two convolutions in the branch make it basic, three a bottleneck.
      others: layers of `config.depth` that stand outside the blocks.
      opening: makes the order of a stage's first block from that of the others.

    Raises:
      DropbnError: a block of neither kind, or a depth that does not divide into such blocks.
    """
    num_convs = _convs(block)
    blocks, rest = divmod(config.depth - others, 3 * num_convs)
    if rest or blocks < 1:
        raise DropbnError(
            f"model.depth={config.depth}: with {num_convs} convolutions in each block's branch it has to be "
            f"{3 * num_convs}n + {others}, such as {3 * num_convs + others} or {9 * num_convs + others}."
        )
    return [
        Section(
            f"stage{stage + 1}_block{i + 1}",
            block if i else opening(block),
            block_sizes(block, config.width * 2**stage, 2 if stage and not i else 1),
        )
        for stage in range(3)
        for i in range(blocks)
    ]


def block_sizes(block: Order, channels: int, stride: int) -> tuple[Size, ...]:
    """Sizes of a basic block (3x3, 3x3) or a bottleneck (1x1, 3x3, 1x1 to four times the channels)."""
    if _convs(block) == 2:
        branch = (Size(channels, 3, stride), Size(channels, 3))
    else:
        branch = (Size(channels, 1), Size(channels, 3, stride), Size(4 * channels, 1))
    return with_shortcut(block, branch, stride)


def with_shortcut(block: Order, branch: tuple[Size, ...], stride: int) -> tuple[Size, ...]:
    """The branch's sizes and those of the 1x1 shortcut convolution, if the order has one."""
    shortcut = (Size(branch[-1].features, 1, stride),) if bracket(block).shortcut else ()
    return branch + shortcut


def bracket(block: Order) -> Residual:
    """The block's one residual bracket.

    Raises:
      DropbnError: there is none, or more than one.
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
