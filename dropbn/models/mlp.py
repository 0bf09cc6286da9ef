"""A multilayer perceptron with BN and dropout on its layers."""

from dropbn.models.network import Config, Family, Section, classifier
from dropbn.nn.layers import Size
from dropbn.nn.order import Order, parse

BLOCK = "dense bn relu"
HEAD = "dense"


def sections(config: Config, block: Order, head: Order) -> list[Section]:
    """`config.depth` hidden layers of `config.width` units, each with a bias."""
    hidden = [Section(f"layer{i + 1}", block, (Size(config.width, bias=True),)) for i in range(config.depth)]
    return [
        Section("input", parse("flatten")),
        *hidden,
        classifier(config, head),
    ]


FAMILY = Family(sections, BLOCK, HEAD)
