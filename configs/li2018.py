"""Li et al. 2018, "Understanding the disharmony between dropout and batch normalization by variance shift".

arXiv:1801.05134 v1. CIFAR-10 and CIFAR-100, four networks, dropout or Uout in three places:

    python train.py --config=configs/li2018.py:preresnet110,cifar10,place=a,rate=0.5
    python train.py --config=configs/li2018.py:wrn28_10,cifar100,place=b,beta=0.1
    python train.py --config=configs/li2018.py:densenet_bc,cifar10,place=last,rate=0.2,quick

The first word is a network (`NETWORKS`), the second a dataset (cifar10, cifar100, or another of
dropbn/data); then place (a, b, last), rate (drop probability) or beta (which means Uout), seed, and
`quick`, which shrinks the run for a laptop and takes digits. Settings are those of the code that the paper
follows (bearpaw/pytorch-classification, TRAINING.md): SGD with momentum 0.9, learning rate 0.1, pad-4 crop
and flip, batch 128 (DenseNet 64). Differences: channel statistics are computed from the training images.

`sweep(table)` lists the cells of a table with the paper's test error in %, the mean of five seeds:
"table3" (drop 0.5 in (a) and (b), before adjusting the statistics), "table4" (dropout before the
classifier) and "table6" (Uout in (b)).
"""

from configs import base
from dropbn.models import preresnet

# "PreResNet-110" is 54 bottlenecks, 164 layers: see dropbn/models/preresnet.py.
NETWORKS = {
    "preresnet110": {
        "model": {"name": "preresnet", "depth": 164, "width": 16, "block": preresnet.BOTTLENECK},
        "training": {"duration": "164 epochs", "decay_at": ("81 epochs", "122 epochs"), "weight_decay": 1e-4},
        "quick": {"depth": 11, "width": 4},
    },
    "resnext29": {
        "model": {"name": "resnext", "depth": 29, "width": 64, "cardinality": 8},
        "training": {
            "duration": "300 epochs",
            "decay_at": ("150 epochs", "225 epochs"),
            "weight_decay": 5e-4,
        },
        "quick": {"depth": 11, "width": 2, "cardinality": 2},
    },
    "wrn28_10": {
        "model": {"name": "wrn", "depth": 28, "width": 160},
        "training": {
            "duration": "200 epochs",
            "decay_at": ("60 epochs", "120 epochs", "160 epochs"),
            "decay_factor": 0.2,
            "weight_decay": 5e-4,
        },
        "quick": {"depth": 10, "width": 4},
    },
    "densenet_bc": {
        "model": {"name": "densenet", "depth": 100, "width": 12},
        "training": {
            "duration": "300 epochs",
            "decay_at": ("150 epochs", "225 epochs"),
            "weight_decay": 1e-4,
            "batch_size": 64,
        },
        "quick": {"depth": 10, "width": 4},
    },
}


def get_config(arg="preresnet110,cifar10"):
    return base.cell(arg, NETWORKS, places=("a", "b", "last"))


def sweep(table):
    """[{"arg": what get_config takes, "paper": test error in %}] of every cell of a table."""
    return base.cells(TABLES[table])


TABLES = {
    "table3": {
        "networks": tuple(NETWORKS),
        "columns": (",place=a,rate=0.5", ",place=b,rate=0.5"),
        "paper": {
            "cifar10": ((8.42, 5.85), (4.43, 4.09), (4.59, 3.81), (8.70, 5.63)),
            "cifar100": ((32.45, 25.50), (19.04, 19.33), (21.08, 19.48), (31.45, 25.00)),
        },
    },
    "table4": {
        "networks": tuple(NETWORKS),
        "columns": ("", *(f",place=last,rate={rate}" for rate in (0.1, 0.2, 0.3, 0.5))),
        "paper": {
            "cifar10": (
                (5.02, 4.96, 5.01, 4.94, 5.03),
                (3.77, 3.89, 3.69, 3.78, 3.78),
                (3.97, 3.90, 4.00, 3.93, 3.84),
                (4.72, 4.67, 4.73, 4.75, 4.87),
            ),
            "cifar100": (
                (23.73, 23.43, 23.65, 23.45, 23.76),
                (17.78, 17.77, 17.99, 17.97, 18.26),
                (19.17, 19.17, 19.23, 19.19, 19.25),
                (22.58, 21.86, 22.41, 22.41, 23.49),
            ),
        },
    },
    "table6": {
        "networks": tuple(NETWORKS),
        "columns": ("", *(f",place=b,beta={beta}" for beta in (0.1, 0.2, 0.3, 0.5))),
        "paper": {
            "cifar10": (
                (5.02, 5.02, 4.85, 4.98, 4.97),
                (3.77, 3.84, 3.83, 3.75, 3.79),
                (3.97, 3.96, 3.80, 3.90, 3.84),
                (4.72, 4.70, 4.64, 4.68, 4.61),
            ),
            "cifar100": (
                (23.73, 23.73, 23.62, 23.53, 23.77),
                (17.78, 17.74, 17.77, 17.83, 17.86),
                (19.17, 19.07, 18.98, 18.95, 18.87),
                (22.58, 22.39, 22.57, 22.35, 22.30),
            ),
        },
    },
}
