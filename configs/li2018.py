"""Li et al. 2018, "Understanding the disharmony between dropout and batch normalization by variance shift".

arXiv:1801.05134 v1. CIFAR-10 and CIFAR-100, four networks, dropout or Uout in three places:

    python train.py --config=configs/li2018.py:preresnet110,cifar10,place=a,rate=0.5
    python train.py --config=configs/li2018.py:wrn28_10,cifar100,place=b,beta=0.1
    python train.py --config=configs/li2018.py:densenet_bc,cifar10,place=last,rate=0.2,quick

The first word is a network (`NETWORKS`), the second a dataset (cifar10, cifar100, or another of dropbn/data).
Further words: place (a, b, last), rate (drop probability) or beta (which means Uout), seed, and `quick`,
which shrinks the run for a laptop and takes digits. Settings are those of the code that the paper follows
(bearpaw/pytorch-classification, TRAINING.md): SGD with momentum 0.9, learning rate 0.1, pad-4 crop and flip,
batch 128 (DenseNet 64), no Nesterov momentum, weight decay on all parameters. The weights of ResNeXt's
convolutions in groups begin with variance 2 / (kernel^2 features), all features counted, as PyTorch's
kaiming_normal_ counts. Differences: channel statistics are computed from the training images; the
classifier's initial weights are PyTorch's uniform ones in every network; running variances are biased; an
epoch leaves out the images that do not fill a batch (that code trains on them). The error is that of the last
epoch; that code prints the best epoch's, and the paper does not say which one it gives.

`sweep(table)` lists the cells of a table with the paper's test error in %, the mean of five seeds:
"table3" (drop 0.5 in (a) and (b), "paper" before and "adjusted" after adjusting the statistics), "table4"
(dropout before the classifier), "table5" (the same on ImageNet, top-1) and "table6" (Uout in (b)); and
"figure4", the drop rates 0 to 0.7 in (a) and (b), whose values are read off its bars. `claims(table)` lists
what follows: (a) against (b) and adjusted against unadjusted statistics in Table 3, else every rate against
none. The paper does not say which statistics are in use while Table 3's are adjusted. So each of these claims
is judged twice, by the authors' likely code ("adjusted", recipe li2018_torch) and by the text ("literally
adjusted", recipe li2018).

Table 5's networks (`preresnet200`, `resnext101`, `senet154`, on imagenet2012) are named but not described in
the paper: ResNeXt-101 and SENet are taken to be 64x4d and SENet-154, which have the errors that it gives.
Their training is not described either. Ours is 224-pixel crops, 90 epochs of batch 256, learning rate 0.1
divided by 10 at 30 and 60, weight decay 1e-4 on all parameters, and initial weights as for CIFAR.
"""

from configs import base
from dropbn.models import preresnet
from dropbn.study import cells
from dropbn.study.claims import against_first, claims_of_table

_SMALL = {"data.crop_padding": 4, "data.flip": True, "optimizer.schedule": "step"}


def _recipe(epochs, decay_at, weight_decay, **others):
    return {
        **_SMALL,
        "duration": f"{epochs} epochs",
        "optimizer.decay_at": tuple(f"{epoch} epochs" for epoch in decay_at),
        "optimizer.weight_decay": weight_decay,
        **others,
    }


# The training of Table 5, which the paper does not describe: torchvision's reference for ResNet, 90 epochs.
_IMAGENET = {
    "data.image_size": 224,
    "data.crop_scale": (0.08, 1.0),
    "data.flip": True,
    "eval.train_examples": 2000,
    "batch_size": 256,
    "duration": "90 epochs",
    "optimizer.schedule": "step",
    "optimizer.decay_at": ("30 epochs", "60 epochs"),
}

# "PreResNet-110" is 54 bottlenecks, 164 layers: see dropbn/models/preresnet.py.
NETWORKS = {
    "preresnet110": {
        "fields": {
            "model.name": "preresnet",
            "model.depth": 164,
            "model.width": 16,
            "model.block": preresnet.BOTTLENECK,
            **_recipe(164, (81, 122), 1e-4),
        },
        "quick": {"model.depth": 11, "model.width": 4},
    },
    "resnext29": {
        "fields": {
            "model.name": "resnext",
            "model.depth": 29,
            "model.width": 64,
            "model.cardinality": 8,
            **_recipe(300, (150, 225), 5e-4),
        },
        "quick": {"model.depth": 11, "model.width": 2, "model.cardinality": 2},
    },
    "wrn28_10": {
        "fields": {
            "model.name": "wrn",
            "model.depth": 28,
            "model.width": 160,
            **_recipe(200, (60, 120, 160), 5e-4, **{"optimizer.decay_factor": 0.2}),
        },
        "quick": {"model.depth": 10, "model.width": 4},
    },
    "densenet_bc": {
        "fields": {
            "model.name": "densenet",
            "model.depth": 100,
            "model.width": 12,
            **_recipe(300, (150, 225), 1e-4, batch_size=64),
        },
        "quick": {"model.depth": 10, "model.width": 4},
    },
    "preresnet200": {
        "fields": {"model.name": "preresnet_imagenet", "model.depth": 200, "model.width": 64, **_IMAGENET},
        "quick": {"model.depth": 14, "model.width": 4, **cells.PHOTOS},
    },
    "resnext101": {
        "fields": {
            "model.name": "resnext_imagenet",
            "model.depth": 101,
            "model.width": 4,
            "model.cardinality": 64,
            **_IMAGENET,
        },
        "quick": {"model.depth": 14, "model.width": 1, "model.cardinality": 2, **cells.PHOTOS},
    },
    "senet154": {
        "fields": {
            "model.name": "senet",
            "model.depth": 152,
            "model.width": 4,
            "model.cardinality": 64,
            **_IMAGENET,
        },
        "quick": {"model.depth": 14, "model.width": 2, "model.cardinality": 2, **cells.PHOTOS},
    },
}
NAMES = {
    "preresnet110": "PreResNet-110",
    "resnext29": "ResNeXt-29",
    "wrn28_10": "WRN-28-10",
    "densenet_bc": "DenseNet-BC",
    "preresnet200": "PreResNet-200",
    "resnext101": "ResNeXt-101",
    "senet154": "SENet-154",
}
METRIC = "error"  # what the tables count, in %
CIFAR_NETWORKS = ("preresnet110", "resnext29", "wrn28_10", "densenet_bc")


def get_config(arg="preresnet110,cifar10"):
    return cells.cell(base.get_config(), arg, NETWORKS, places=("a", "b", "last"))


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": test error in %, "adjusted": or None}]."""
    return cells.of_table(TABLES, table)


def claims(table):
    """What a table claims: see `claims_of_table`."""
    return claims_of_table(TABLES, table, source="Li et al. 2018", networks=NAMES, metric=METRIC)


def _rates(place):
    """The columns of Fig. 4 for a place: without dropout, and by drop rate."""
    return (f",place={place}", *(f",place={place},rate={rate}" for rate in (0.1, 0.3, 0.5, 0.7)))


TABLES = {
    "table3": {
        "networks": CIFAR_NETWORKS,
        "columns": (",place=a,rate=0.5", ",place=b,rate=0.5"),
        "paper": {
            "cifar10": ((8.42, 5.85), (4.43, 4.09), (4.59, 3.81), (8.70, 5.63)),
            "cifar100": ((32.45, 25.50), (19.04, 19.33), (21.08, 19.48), (31.45, 25.00)),
        },
        "adjusted": {
            "cifar10": ((6.42, 5.77), (3.96, 3.93), (4.20, 3.71), (6.82, 5.29)),
            "cifar100": ((26.57, 25.20), (18.24, 19.09), (20.70, 19.15), (26.98, 23.92)),
        },
    },
    "table4": {
        "networks": CIFAR_NETWORKS,
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
        "networks": CIFAR_NETWORKS,
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
    "table5": {
        "networks": ("preresnet200", "resnext101", "senet154"),
        "columns": ("", ",place=last,rate=0.2"),
        "paper": {"imagenet2012": ((21.70, 21.48), (20.40, 20.17), (18.89, 18.68))},
    },
    "figure4": {
        "networks": CIFAR_NETWORKS,
        "columns": tuple(column for place in "ab" for column in _rates(place)),
        "pairs": (*against_first(_rates("a")), *against_first(_rates("b"))),
        "labels": {",place=a": "no dropout", ",place=b": "no dropout"},
        "paper": {
            "cifar10": (
                (4.91, 5.16, 5.87, 8.43, 14.51, 5.10, 5.06, 5.29, 5.86, 7.23),
                (3.77, 3.86, 4.10, 4.43, 4.57, 3.78, 3.81, 3.77, 4.09, 4.91),
                (3.98, 3.91, 3.99, 4.59, 10.26, 3.98, 3.85, 3.81, 3.81, 4.38),
                (4.83, 4.63, 5.55, 8.70, 18.10, 4.66, 4.67, 4.92, 5.63, 7.19),
            ),
            "cifar100": (
                (23.98, 24.10, 26.36, 32.46, 48.80, 23.58, 23.66, 24.34, 25.51, 27.71),
                (17.69, 17.75, 17.85, 19.04, 20.12, 17.84, 17.76, 18.33, 19.34, 21.15),
                (19.15, 18.65, 19.52, 21.08, 28.09, 19.18, 18.81, 18.71, 19.48, 20.97),
                (22.45, 22.41, 25.26, 31.45, 49.48, 22.66, 22.54, 22.84, 25.00, 27.49),
            ),
        },
    },
}
