"""The papers' claims at a size that a laptop decides, on scikit-learn's digits and a part of CIFAR-10.

    python -m dropbn.study --config=configs/small.py:digits --workdir=runs/digits_study
    python -m dropbn.study --config=configs/small.py:cifar10 --workdir=runs/cifar_study --seeds=3
    python train.py --config=configs/small.py:preresnet8,digits,place=P5,seed=3

The first word of a cell is a network (`NETWORKS`), the second a dataset; then place, rate (0.2) or beta,
seed, and `quick`. PreResNet-8 of width 16 trains 20 epochs on digits, PreResNet-20 of width 16 10 epochs on
10,000 images of CIFAR-10 (pad-4 crop and flip; accuracies on all test images); the learning rate falls from
0.1 by a cosine.

`sweep(table)` lists the cells of "digits" and "cifar10", beside each the accuracy in % of a paper's
PreResNet-110 on CIFAR-10 with the same noise: in "digits" Kim et al.'s (2023, Table 1), in "cifar10" Li et
al.'s (2018, 100 - error of Tables 3 and 4). They give the sign and the size of differences and are no
targets. `claims(table)` says what the papers claim of the cells.
"""

from configs import base, kim2023

_COSINE = {"model.name": "preresnet", "model.width": 16, "optimizer.schedule": "cosine"}
_QUICK = {
    "model.depth": 8,
    "model.width": 4,
    "data.flip": False,
    "data.train_examples": 0,
    "data.subset_seed": -1,
}
NETWORKS = {
    "preresnet8": {
        "fields": {
            **_COSINE,
            "model.depth": 8,
            "batch_size": 64,
            "duration": "20 epochs",
            "checkpoint_every": "10 epochs",
        },
        "quick": _QUICK,
    },
    "preresnet20": {
        "fields": {
            **_COSINE,
            "model.depth": 20,
            "data.train_examples": 10_000,
            "data.crop_padding": 4,
            "data.flip": True,
            "duration": "10 epochs",
            "eval.train_examples": 2000,
        },
        "quick": _QUICK,
    },
}
PLACES = ("a", "b", "last", "ic", *(f"P{i}" for i in range(8)), "H4", "H5")


def get_config(arg="preresnet8,digits"):
    return base.cell(arg, NETWORKS, places=PLACES, rate=0.2)


NAMES = {"preresnet8": "PreResNet-8", "preresnet20": "PreResNet-20"}
METRIC = "accuracy"  # what the tables count, in %
COMPARABLE = (
    False  # The paper's values are of larger networks: differences between cells compare, not values.
)
A, B, LAST = (f",place={place},rate=0.5" for place in ("a", "b", "last"))
UOUT_A, UOUT_B = (f",place={place},beta=0.5" for place in "ab")
H4, H5 = (f",place={place},rate=0.5" for place in ("H4", "H5"))
POSITIONS = tuple(f",place=P{i}" for i in range(8))
# Kim's PreResNet-110 on CIFAR-10: column -> accuracy.
_KIM = dict(zip(("", *POSITIONS), kim2023.TABLES["table1"]["paper"]["cifar10"][1], strict=True))


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": accuracy in % or None, "adjusted": too}]."""
    return base.cells(TABLES, table, blank=True)


def claims(table):
    """What the papers claim of the cells of a table, with their differences in their own networks.

    A metric of adjusted statistics is compared with the same cell's unadjusted accuracy. The training
    accuracy in train mode minus that in test mode is a question: the noise lowers the former, the statistics
    lower the latter, and the sign says which is more. In Li's Fig. 5 the noise takes 1.2 points at most
    (98.8 % in train mode, PreResNet, CIFAR-10).
    """
    sweep(table)  # Refuses a table that does not exist.
    (network,), (dataset,) = TABLES[table]["networks"], TABLES[table]["paper"]
    where, found = f"{NAMES[network]}, {base.DATASETS[dataset]}", []
    for more, less, metric, paper, source in TABLES[table]["claims"]:
        metrics = (metric, "accuracy" if metric.endswith("accuracy") else metric)
        sides = (
            base.Side(base.label(column), f"{network},{dataset}{column}", of)
            for column, of in zip((more, less), metrics, strict=True)
        )
        found.append(base.claim(*sides, where, source, paper=paper, sign=int(metric != "train_gap")))
    return found


# Claims: (column with more, column with less, metric of dropbn.claims, the paper's difference, source).
def _li(more, less, metric, paper, place):
    return (more, less, metric, paper, f"Li et al. 2018, {place}, PreResNet-110, CIFAR-10")


def _kim(position):
    more, less = sorted(("", position), key=_KIM.get, reverse=True)
    difference = round(_KIM[more] - _KIM[less], 4)
    return (more, less, "accuracy", difference, "Kim et al. 2023, Table 1, PreResNet-110, CIFAR-10")


# The shifts are the maxima of Fig. 4's curves; that of (b) is cut at 1.209.
_LI = (
    ("", A, "accuracy", 3.40, "Tables 4 and 3"),
    (B, A, "accuracy", 2.57, "Table 3"),
    (A, A, "adjusted_accuracy", 2.00, "Table 3"),
    (A, "", "shift", 1.325, "Fig. 4 (2.349 - 1.024)"),
    (A, B, "shift", 1.140, "Fig. 4 (2.349 - 1.209, at most)"),
    (B, "", "shift", 0.183, "Fig. 4 (1.209 - 1.026, at least)"),
    (A, "", "train_gap", None, "Fig. 5 (98.796 - 98.512 against 99.96 - 99.99)"),
)
_REACHES = "Kim et al. 2023, Propositions 2 to 4 (P0 to P4 reach a BN before any addition)"
TABLES = {
    "digits": {
        "networks": ("preresnet8",),
        "columns": (*_KIM, A, B, LAST, UOUT_A, UOUT_B, H4, H5, ",place=ic"),
        "paper": {"digits": ((*_KIM.values(), *8 * (None,)),)},
        "claims": (
            *map(_kim, POSITIONS),
            *(_li(*row) for row in _LI),
            _li(UOUT_B, B, "accuracy", 0.88, "Tables 6 and 3"),
            (H4, H5, "accuracy", 0.973, "Kim et al. 2023, Table 5, ResNetV2-50, Caltech-101"),
            *((position, "", "shift", None, _REACHES) for position in POSITIONS[:5]),
            (",place=P4", ",place=P6", "shift", None, _REACHES),
            (A, UOUT_A, "shift", None, "Li et al. 2018, eq. 8 and 15"),
        ),
    },
    "cifar10": {
        "networks": ("preresnet20",),
        "columns": ("", A, B),
        "paper": {"cifar10": ((94.98, 91.58, 94.15),)},
        "adjusted": {"cifar10": ((None, 93.58, 94.23),)},
        "claims": (
            *(_li(*row) for row in _LI),
            _li("", B, "accuracy", 0.83, "Tables 4 and 3"),
            _li(B, B, "adjusted_accuracy", 0.08, "Table 3"),
        ),
    },
}
