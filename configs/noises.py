"""Every kind of noise at one variance, in Li's and Kim's positions of a small network.

    python -m dropbn study --config=configs/noises.py:digits --workdir=runs/noises --seeds=4
    python train.py --config=configs/noises.py:preresnet8,digits,place=a,kind=dropblock,rate=0.2,block_size=3

PreResNet-8 of width 16 trains 10 epochs on digits, as in `configs/small.py` otherwise. In every position
stands each kind with s2 = 1/4: a rate of 0.2, or a Uout of sqrt(3/4). Alpha dropout 0.2, which has no
s2, is there for comparison. P4 is (a) and P6 is (b). P3 and P5 are P2 and P6 for every m >= 0 (Kim et al.
2023, Proposition 1), so they are left out.

The maps have 8, 4 and 2 pixels a side, so blocks have 3 pixels a side instead of the published 7.
"""

from configs import base, small
from dropbn.study import cells
from dropbn.study.claims import Side, compare, label

NETWORKS = {
    "preresnet8": {
        "fields": small.NETWORKS["preresnet8"]["fields"] | {"duration": "10 epochs"},
        "quick": small.NETWORKS["preresnet8"]["quick"],
    }
}
PLACES = ("a", "b", "P2", "P1", "P0", "P7")
COMPARABLE = False

ELEMENTS = ("kind=gaussian,rate=0.2", "beta=0.8660254")
SHARED = (
    "kind=spatial,rate=0.2",
    "kind=stochastic_depth,rate=0.2",
    "kind=dropblock,rate=0.2,block_size=3",
)
KINDS = ("rate=0.2", *ELEMENTS, *SHARED, "kind=alpha,rate=0.2")
TABLES = {
    "digits": {
        "networks": ("preresnet8",),
        "columns": ("", *(f",place={place},{kind}" for place in PLACES for kind in KINDS)),
        "paper": {"digits": ((None,) * (1 + len(PLACES) * len(KINDS)),)},
    }
}


def get_config(arg="preresnet8,digits"):
    words = {"kind": "model.noise.kind", "block_size": "model.noise.block_size"}
    return cells.cell(base.get_config(), arg, NETWORKS, places=PLACES, words=words)


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": None, "adjusted": None}]."""
    return cells.of_table(TABLES, table, blank=True)


def claims(table):
    """How much each kind shifts beside dropout in the same position; no source says."""
    sweep(table)  # Refuses a table that does not exist.
    network, dataset = "preresnet8", "digits"
    source = "ours: noises of one variance in one position"
    found = []
    for place in PLACES:
        plain, *others = (f",place={place},{kind}" for kind in KINDS)
        for column in others:
            sides = (Side(label(c), f"{network},{dataset}{c}", "shift") for c in (column, plain))
            found.append(compare(*sides, "PreResNet-8, digits", source, sign=0))
    return found
