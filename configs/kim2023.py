"""Kim et al. 2023, "How to use dropout correctly on residual networks with batch normalization" (UAI).

CIFAR-10 and CIFAR-100 (their Tables 1 and 3 and supplementary Table 1), dropout 0.2 in a named position:

    python train.py --config=configs/kim2023.py:preresnet110,cifar100,place=P6
    python train.py --config=configs/kim2023.py:resnet50,cifar10,place=G1
    python train.py --config=configs/kim2023.py:wrn28_2,cifar10,place=P5,quick

The first word is a network (`NETWORKS`), the second a dataset; then place (P0 to P7, or G1, Guideline 1:
after the branch's last BN, which is P5 under pre-activation and the end of the branch in ResNetV1), rate,
seed, and `quick`, which shrinks the run for a laptop and takes digits. Settings (section 4 and the authors'
code): 164 epochs, SGD with momentum 0.9, learning rate 0.1 divided by 10 at epochs 81 and 122, weight decay
1e-4, batch 128, pad-4 crop and flip.

`sweep(table)` lists the cells of "table1", "table3" and "supplement1" with the paper's test accuracy in %,
the mean of three seeds.
"""

from configs import base

_TRAINING = {"duration": "164 epochs", "decay_at": ("81 epochs", "122 epochs"), "weight_decay": 1e-4}


def _network(name, depth, width, quick_depth=8):
    return {
        "model": {"name": name, "depth": depth, "width": width},
        "training": _TRAINING,
        "quick": {"depth": quick_depth, "width": 4},
    }


NETWORKS = {
    **{
        f"{name}{depth}": _network(name, depth, 16) for name in ("preresnet", "resnet") for depth in (50, 110)
    },
    **{f"wrn28_{k}": _network("wrn", 28, 16 * k, quick_depth=10) for k in (10, 5, 2, 1)},
}


def get_config(arg="preresnet110,cifar10"):
    places = (*(f"P{i}" for i in range(8)), "G1")
    return base.cell(arg, NETWORKS, places=places, rate=0.2)


def sweep(table):
    """[{"arg": what get_config takes, "paper": test accuracy in %}] of every cell of a table."""
    return base.cells(TABLES[table])


TABLES = {
    "table1": {
        "networks": ("preresnet50", "preresnet110"),
        "columns": ("", *(f",place=P{i}" for i in range(8))),
        "paper": {
            "cifar10": (
                (93.6633, 84.2500, 92.9167, 93.1933, 93.5833, 93.2167, 93.8333, 93.6767, 93.7800),
                (94.0300, 70.9433, 93.5467, 93.6867, 93.8133, 93.8933, 94.4367, 94.2200, 94.2667),
            ),
            "cifar100": (
                (71.3900, 52.6200, 70.2000, 71.1433, 71.0767, 70.4800, 72.3633, 72.4267, 72.0833),
                (73.5367, 18.3467, 71.2733, 72.4133, 72.3967, 72.1400, 73.6300, 73.9800, 73.5633),
            ),
        },
    },
    "table3": {
        "networks": ("resnet50", "resnet110"),
        "columns": ("", ",place=G1"),
        "paper": {
            "cifar10": ((93.2700, 93.4600), (93.7067, 93.9500)),
            "cifar100": ((70.6200, 71.4867), (71.8833, 73.1133)),
        },
    },
    # The dataset is not named beside this table; by its numbers it is CIFAR-10.
    "supplement1": {
        "networks": ("wrn28_10", "wrn28_5", "wrn28_2", "wrn28_1"),
        "columns": ("", ",place=G1"),
        "paper": {
            "cifar10": ((96.1667, 96.2433), (95.7733, 96.1233), (94.9100, 94.9367), (93.0433, 93.2433)),
        },
    },
}
