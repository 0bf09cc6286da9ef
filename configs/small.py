"""The papers' claims at a size that a laptop decides, on scikit-learn's digits and a part of CIFAR-10.

    python -m dropbn study --config=configs/small.py:digits --workdir=runs/digits_study
    python -m dropbn study --config=configs/small.py:digits_few --workdir=runs/few_study --seeds=20
    python -m dropbn study --config=configs/small.py:cifar10 --workdir=runs/cifar_study --seeds=5
    python -m dropbn study --config=configs/small.py:widths --workdir=runs/widths_study --seeds=3
    python train.py --config=configs/small.py:preresnet8,digits,place=P5,seed=3

The first word of a cell is a network (`NETWORKS`), the second a dataset. Further words: place, rate (0.2) or
beta, kind (of the noise), block (an order), width, seed, and `quick`. PreResNet-8 of width 16 trains 20
epochs on digits; PreResNet-20 of width 16 trains 10 epochs on 10,000 images of CIFAR-10 (pad-4 crop and flip;
accuracies on all test images); the learning rate falls from 0.1 by a cosine.

preresnet8_few is the same PreResNet-8 on few images, so that accuracies differ. Digits is divided into 800
test images, the same for every seed, and 997 others, from which each seed draws its own training images. It
trains 60 epochs in batches of 50. The number of training images, 100, was chosen only on the network without
noise, with seeds 100 to 102, which the study does not use. That network is right on 89.8 % of the test images
with 100 training images, on 92.1 % with 150 and on 94.7 % with 200.

"widths" and "widths_wrn" ask whether dropout 0.5 in (b) shifts less in wider networks, as Li et al. say:
PreResNet-8 with 4 to 32 channels in its first stage, and WRN-10-k with k = 1, 2 and 4 (width = 16k), which
trains as PreResNet-8 does.

`sweep(table)` lists the cells of a table. Those of "digits", "digits_few" and "cifar10" have the accuracy in
% of a paper's PreResNet-110 on CIFAR-10 with the same noise: Li et al.'s in "cifar10" (2018, 100 - error of
Tables 3 and 4), Kim et al.'s in the others (2023, Table 1). They give the sign and the size of differences
and are not targets. `claims(table)` lists what the papers claim about the cells, and in "digits_few" also
that a less accurate cell has the larger test loss.
"""

import itertools

from configs import base, kim2023
from dropbn.study import cells
from dropbn.study.claims import Side, compare, label
from dropbn.study.placements import DATASETS

_COSINE = {"model.name": "preresnet", "model.width": 16, "optimizer.schedule": "cosine"}
_DIGITS = {"batch_size": 64, "duration": "20 epochs", "checkpoint_every": "10 epochs"}
_QUICK = {
    "model.depth": 8,
    "model.width": 4,
    "data.flip": False,
    "data.train_examples": 0,
    "data.subset_seed": -1,
}
NETWORKS = {
    "preresnet8": {"fields": {**_COSINE, "model.depth": 8, **_DIGITS}, "quick": _QUICK},
    "wrn10": {
        "fields": {**_COSINE, "model.name": "wrn", "model.depth": 10, **_DIGITS},
        "quick": _QUICK | {"model.depth": 10},
    },
    "preresnet8_few": {
        "fields": {
            **_COSINE,
            "model.depth": 8,
            "data.split": "997:0:800",
            "data.train_examples": 100,
            "data.subset_seed": 0,
            "batch_size": 50,
            "duration": "60 epochs",
            "checkpoint_every": "60 epochs",
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
PLACES = ("a", "b", "last", "ic", *(f"P{i}" for i in range(8)), "H4", "H5", "G1+G2")


def get_config(arg="preresnet8,digits"):
    words = {"kind": "model.noise.kind", "block": "model.block", "width": "model.width"}
    config = cells.cell(base.get_config(), arg, NETWORKS, places=PLACES, rate=0.2, words=words)
    if config.data.subset_seed >= 0:
        config.data.subset_seed = config.get_ref("seed")  # Every seed draws its own images.
    return config


NAMES = {
    "preresnet8": "PreResNet-8",
    "wrn10": "WRN-10",
    "preresnet8_few": "PreResNet-8, 100 images",
    "preresnet20": "PreResNet-20",
}
METRIC = "accuracy"  # what the tables count, in %
# The paper's values belong to larger networks: only differences between cells can be compared.
COMPARABLE = False
A, B, LAST = (f",place={place},rate=0.5" for place in ("a", "b", "last"))
UOUT_A, UOUT_B = (f",place={place},beta=0.5" for place in "ab")
GAUSSIAN_A, GAUSSIAN_B = (f",place={place},kind=gaussian,rate=0.5" for place in "ab")
H4, H5 = (f",place={place},rate=0.5" for place in ("H4", "H5"))
POSITIONS = tuple(f",place=P{i}" for i in range(8))
# Kim's PreResNet-110 on CIFAR-10: column -> accuracy.
_KIM = dict(zip(("", *POSITIONS), kim2023.TABLES["table1"]["paper"]["cifar10"][1], strict=True))


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": accuracy in % or None, "adjusted": too}]."""
    return cells.of_table(TABLES, table, blank=True)


def claims(table):
    """What the papers claim about the cells of a table, with the differences in their own networks.

    A metric of adjusted statistics is compared with the same cell's unadjusted accuracy. The training
    accuracy in train mode minus that in test mode is a question: the noise lowers the former, the statistics
    lower the latter, and the sign says which effect is larger. In Li's Fig. 5 the noise costs at most 1.2
    points (98.8 % in train mode, PreResNet, CIFAR-10).
    """
    sweep(table)  # Refuses a table that does not exist.
    (network,), (dataset,) = TABLES[table]["networks"], TABLES[table]["paper"]
    where, found = f"{NAMES[network]}, {DATASETS[dataset]}", []
    for more, less, metric, paper, source, *sign in TABLES[table]["claims"]:
        metrics = (metric, "accuracy" if metric.endswith("accuracy") else metric)
        sides = (
            Side(label(column), f"{network},{dataset}{column}", of)
            for column, of in zip((more, less), metrics, strict=True)
        )
        found.append(compare(*sides, where, source, paper=paper, sign=sign[0] if sign else 1))
    return found


# A claim: (column with more, column with less, metric of dropbn.study.claims, the paper's difference, source,
# sign).
def _li(more, less, metric, paper, place, sign=1):
    return (more, less, metric, paper, f"Li et al. 2018, {place}, PreResNet-110, CIFAR-10", sign)


def _kim(position):
    more, less = sorted(("", position), key=_KIM.get, reverse=True)
    difference = round(_KIM[more] - _KIM[less], 4)
    return (more, less, "accuracy", difference, "Kim et al. 2023, Table 1, PreResNet-110, CIFAR-10", 1)


def _in_loss(claim):
    """A claim of our own: the less accurate cell has the larger test loss."""
    more, less, _, _, source, sign = claim
    return (less, more, "test_loss", None, f"ours, as the accuracies of {source}", sign)


# The shifts are the maxima of Fig. 4's curves; that of (b) is cut at 1.209.
_LI = (
    _li("", A, "accuracy", 3.40, "Tables 4 and 3"),
    _li(B, A, "accuracy", 2.57, "Table 3"),
    _li(A, A, "adjusted_accuracy", 2.00, "Table 3"),
    _li(A, A, "literally_adjusted_accuracy", 2.00, "Table 3 read literally"),
    _li(A, "", "shift", 1.325, "Fig. 4 (2.349 - 1.024)"),
    _li(A, B, "shift", None, "Fig. 4 (2.349 - 1.209, at most 1.140)"),
    _li(B, "", "shift", 0.183, "Fig. 4 (1.209 - 1.026, at least)"),
    _li(A, "", "train_gap", None, "Fig. 5 (98.796 - 98.512 against 99.96 - 99.99)", sign=0),
)
_UOUT = _li(UOUT_B, B, "accuracy", 0.88, "Tables 6 and 3")
_HEAD = (H4, H5, "accuracy", 0.973, "Kim et al. 2023, Table 5, ResNetV2-50, Caltech-101", 1)
_REACHES = "Kim et al. 2023, Propositions 2 to 4 (P0 to P4 reach a BN before any addition)"
_SHIFTS = (
    *((position, "", "shift", None, _REACHES, 1) for position in POSITIONS[:5]),
    (",place=P4", ",place=P6", "shift", None, _REACHES, 1),
    (A, UOUT_A, "shift", None, "Li et al. 2018, eq. 8 and 15", 1),
)

# P3 and P5 are P2 and P6 (Kim et al., Proposition 1).
_FEW = tuple(f",place=P{i}" for i in (0, 1, 2, 4, 6, 7))
_GUIDELINES, _IC = ",place=G1+G2", ",place=ic"
_BN_AFTER = ",block=[relu bn conv relu bn conv | conv]"
# Noises in one place whose factors have the same variance s2, 1/4 and then 1/12; P4 is (a), P6 is (b).
_EQUAL = (
    (",place=a,kind=gaussian,rate=0.2", ",place=P4"),
    (",place=a,beta=0.866", ",place=P4"),
    (",place=b,kind=gaussian,rate=0.2", ",place=P6"),
    (",place=b,beta=0.866", ",place=P6"),
    (UOUT_A, ",place=a,rate=1/13"),
    (UOUT_B, ",place=b,rate=1/13"),
)
_FEW_ACCURACIES = (
    *map(_kim, _FEW),
    *_LI[:2],
    _UOUT,
    _li(UOUT_B, "", "accuracy", 0.05, "Table 6"),
    _li("", LAST, "accuracy", 0.01, "Table 4"),
    _HEAD,
    (_GUIDELINES, "", "accuracy", None, "Kim et al. 2023, Guidelines 1 and 2", 1),
    (_IC, "", "accuracy", None, "Chen et al. 2019", 1),
    (_BN_AFTER, "", "accuracy", 2.5, "caffenet-benchmark, batchnorm.md, CaffeNet, ImageNet", 1),
)


def _widths(network, *widths):
    """The table of dropout 0.5 in (b): each width against the next, and the least against the largest."""
    columns = [f",width={width},place=b,rate=0.5" for width in widths]
    pairs = (*itertools.pairwise(columns), (columns[0], columns[-1]))
    source = "Li et al. 2018, eq. 14 (d cos^2 theta grows with d)"
    return {
        "networks": (network,),
        "columns": columns,
        "paper": {"digits": ([None] * len(columns),)},
        "claims": [(*pair, "shift", None, source, 1) for pair in pairs],
    }


TABLES = {
    "widths": _widths("preresnet8", 4, 8, 16, 32),
    "widths_wrn": _widths("wrn10", 16, 32, 64),
    "digits": {
        "networks": ("preresnet8",),
        "columns": (*_KIM, A, B, LAST, UOUT_A, UOUT_B, H4, H5, _IC),
        "paper": {"digits": ((*_KIM.values(), *8 * (None,)),)},
        "claims": (*map(_kim, POSITIONS), *_LI, _UOUT, _HEAD, *_SHIFTS),
    },
    "digits_few": {
        "networks": ("preresnet8_few",),
        "columns": (
            *("", *_FEW, A, B, LAST, UOUT_A, UOUT_B, GAUSSIAN_A, GAUSSIAN_B),
            *(one for pair in _EQUAL for one in pair if one not in (*_FEW, UOUT_A, UOUT_B)),
            *(H4, H5, _GUIDELINES, _IC, _BN_AFTER),
        ),
        "paper": {"digits": ((*map(_KIM.get, ("", *_FEW)), *18 * (None,)),)},
        "claims": (
            *_FEW_ACCURACIES,
            *map(_in_loss, _FEW_ACCURACIES),
            *_LI[2:],
            *(row for row in _SHIFTS if ",place=P3" not in row),
            *(
                (*pair, metric, None, "ours: noises of one variance in one place", 0)
                for pair in _EQUAL
                for metric in ("accuracy", "test_loss", "shift")
            ),
        ),
    },
    "cifar10": {
        "networks": ("preresnet20",),
        "columns": ("", *_FEW, A, B, LAST, UOUT_A, GAUSSIAN_A),
        "paper": {"cifar10": ((94.98, *6 * (None,), 91.58, 94.15, 94.97, None, None),)},
        "adjusted": {"cifar10": ((*7 * (None,), 93.58, 94.23, None, None, None),)},
        "claims": (
            *map(_kim, _FEW),
            *_LI,
            _li("", B, "accuracy", 0.83, "Tables 4 and 3"),
            _li(B, B, "adjusted_accuracy", 0.08, "Table 3"),
            _li(B, B, "literally_adjusted_accuracy", 0.08, "Table 3 read literally"),
            _li("", LAST, "accuracy", 0.01, "Table 4"),
            *(row for row in _SHIFTS if ",place=P3" not in row),
        ),
    },
}
