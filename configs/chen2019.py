"""Chen et al. 2019, "Rethinking the usage of batch normalization and dropout" (arXiv:1905.05928).

An IC (independent-component) layer is BN and then dropout, right before a weight layer:

    python train.py --config=configs/chen2019.py:preresnet110,cifar10,order=relu_ic_conv
    python train.py --config=configs/chen2019.py:preresnet110,cifar10,order=conv_relu_ic,rate=0.1,seed=1,quick

The first word is a network, the second a dataset. Further words: `order` (`ORDERS`: the paper's three
residual blocks and the pre-activation block without dropout), rate, seed, and `quick`. `relu_ic_conv` is what
the place "ic" makes of the pre-activation block.

The paper's results and training settings were not available to us, so the cells of `sweep("orders")` have no
values beside them. All settings are guesses: those of configs/kim2023.py for the same networks (including
what is said there about decay, initial weights, the last epoch and incomplete batches), and the rate 0.05,
which third-party implementations use.
"""

from configs import base, kim2023
from dropbn.errors import unknown
from dropbn.study import cells

ORDERS = {
    "preactivation": "[bn relu conv bn relu conv | conv]",
    "relu_ic_conv": "[relu bn drop conv relu bn drop conv | conv]",
    "ic_conv_relu": "[bn drop conv relu bn drop conv relu | conv]",
    "conv_relu_ic": "[conv relu bn drop conv relu bn drop | conv]",
}
NETWORKS = {name: kim2023.NETWORKS[name] for name in ("preresnet50", "preresnet110")}


def get_config(arg="preresnet110,cifar10,order=relu_ic_conv"):
    config = cells.cell(base.get_config(), arg, NETWORKS, places=(), words={"order": "model.block"})
    order = config.model.block or "preactivation"
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    config.model.block = ORDERS[order]
    if order != "preactivation" and "rate=" not in arg:
        config.model.noise.rate = 0.05
    return config


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": None, "adjusted": None}]."""
    if table not in TABLES:
        raise unknown("table", table, TABLES)
    return [{"arg": arg, "paper": None, "adjusted": None} for arg in TABLES[table]]


def claims(table):
    """No claims, because we know none of the paper's values."""
    sweep(table)  # Refuses a table that does not exist.
    return []


TABLES = {
    "orders": [
        f"{network},{dataset},order={order}"
        for dataset in ("cifar10", "cifar100")
        for network in NETWORKS
        for order in ORDERS
    ]
}
