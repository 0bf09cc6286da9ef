"""A sparse autoencoder: one hidden layer whose units are mostly off, with BN before the sigmoid.

"sparse" in the block adds sparsity.weight times the sum over units of KL(target || mean activation) to the
loss, with the mean over the batch of a device (Ng 2011, "Sparse autoencoder", section 3). Train it with
task="reconstruct".
"""

from dropbn.models.network import Config, Family, Section, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import Order, parse

BLOCK = "dense bn sigmoid sparse"
HEAD = "dense"


def sections(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.width` hidden units, `config.num_classes` outputs, one for each value of an image."""
    return [
        Section("input", parse("flatten")),
        Section("encoder", block, (Size(config.width, bias=True),) * block.count("dense")),
        classifier(config, head),
    ]


FAMILY = Family(sections, BLOCK, HEAD)
