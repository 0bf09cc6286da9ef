"""Hendrycks & Gimpel 2016, "Adjusting for dropout variance in batch normalization and weight initialization".

arXiv:1607.02488. Two experiments: initial weights that account for dropout, and running variances that are
re-estimated without it.

    python train.py --config=configs/hendrycks2016.py:vgg,cifar10,init=hendrycks
    python train.py --config=configs/hendrycks2016.py:densenet100,cifar100,rate=0.3
    python train.py --config=configs/hendrycks2016.py:densenet40,svhn_cropped,rate=0.2,seed=1,quick

The first word is a network (`NETWORKS`), the second a dataset. Further words: rate (a drop probability; the
paper states keep), init (vgg: hendrycks, he_fan_in), seed, and `quick`. Settings follow the paper and the
authors' code (hendrycks/init). Their L2 coefficient multiplies the sum of squares, whose gradient is twice
the parameter, so ours is twice theirs.

- vgg (section 2.3.2, vgg.py): VGG-16 without BN, a hidden dense layer of 512 units, pad-4 crop and flip, SGD
  with Nesterov momentum, 150 epochs, learning rate divided by 10 at 100 and 125, L2 1e-3. Differences:
  dropout is 0.4 after every activation (theirs is 0.3 to 0.5, with none before pooling). The learning rate is
  0.01 (they chose among 0.01, 0.001 and 0.0001 and do not say which; they write that He's weights do not
  train at 0.01). The correction of dense layers has the backward term. Biases are decayed too.
- densenet40, densenet100 (section 3, densenets/): the plain DenseNet with dropout after every convolution
  except the first, also between the blocks. SGD with Nesterov momentum, batch 64, 300 epochs, learning rate
  0.1 divided by 10 at 150 and 225, L2 2e-4 on all parameters, He's weights by inputs, no augmentation.
  Differences: the classifier has He's weights too (theirs have half the variance). The momentum is never
  reset (theirs is, every five epochs). For SVHN the DenseNet paper trained 40 epochs with the extra images,
  here it is 300 without them.

Their code and ours leave out the images of an epoch that do not fill a batch, and take the error of the last
epoch.

`sweep(table)` lists the cells of "vgg" (test error in %, Nesterov) and "table2" (DenseNet, final error,
"paper" with the running variances as trained and "adjusted" after one epoch that re-estimates them with
dropout off). `claims(table)` lists what follows.
"""

from configs import base
from dropbn.study import cells
from dropbn.study.claims import claims_of_table

_DENSENET = {
    "model.name": "densenet",
    "model.width": 12,
    "model.depth": 100,
    "model.block": "{bn relu conv drop}",
    "model.noise.rate": 0.2,
    "model.init": "he_fan_in",
    "duration": "300 epochs",
    "batch_size": 64,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 2e-4,
    "optimizer.schedule": "step",
    "optimizer.decay_at": ("150 epochs", "225 epochs"),
}
_QUICK = {"model.depth": 10, "model.width": 4}
NETWORKS = {
    "vgg": {
        "fields": {
            "model.name": "vgg",
            "model.depth": 16,
            "model.width": 64,
            "model.block": "conv relu drop",
            "model.head": "flatten dense relu drop dense",
            "model.init": "hendrycks",
            "model.noise.rate": 0.4,
            "data.crop_padding": 4,
            "data.flip": True,
            "duration": "150 epochs",
            "optimizer.learning_rate": 0.01,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 1e-3,
            "optimizer.schedule": "step",
            "optimizer.decay_at": ("100 epochs", "125 epochs"),
        },
        "quick": {"model.depth": 11, "model.width": 4, **cells.PHOTOS},
    },
    "densenet40": {"fields": _DENSENET | {"model.depth": 40}, "quick": _QUICK},
    "densenet100": {"fields": _DENSENET, "quick": _QUICK},
}


def get_config(arg="vgg,cifar10"):
    return cells.cell(base.get_config(), arg, NETWORKS, places=(), words={"init": "model.init"})


NAMES = {"vgg": "VGG", "densenet40": "DenseNet-40", "densenet100": "DenseNet-100"}
METRIC = "error"  # what the tables count, in %


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": test error in %, "adjusted": or None}]."""
    return cells.of_table(TABLES, table)


def claims(table):
    """What a table claims: see `claims_of_table`.

    The paper re-estimates only the variances, with dropout off. A study's runs have Li's recipe
    ("adjusted_accuracy") and the recipe "dropout_off" ("recalibrated_accuracy"). The latter, which also
    re-estimates the means, stands for the paper's.
    """
    return claims_of_table(
        TABLES,
        table,
        source="Hendrycks & Gimpel 2016",
        networks=NAMES,
        metric=METRIC,
        adjusted=("recalibrated_accuracy",),
    )


TABLES = {
    "vgg": {
        "networks": ("vgg",),
        "columns": (",init=hendrycks", ",init=he_fan_in"),
        "labels": {",init=hendrycks": "Hendrycks' init", ",init=he_fan_in": "He's init"},
        "source": "VGG-like network with Nesterov momentum",
        "paper": {"cifar10": ((7.61, 36.59),)},
    },
    "table2": {
        "networks": ("densenet40", "densenet100"),
        "columns": (",rate=0.2", ",rate=0.3"),
        "pairs": (),  # The table compares variances, not rates.
        "paper": {
            "svhn_cropped": ((1.92, None), (None, None)),
            "cifar10": ((None, None), (5.62, None)),
            "cifar100": ((None, None), (22.65, 23.91)),
        },
        "adjusted": {
            "svhn_cropped": ((1.85, None), (None, None)),
            "cifar10": ((None, None), (5.38, None)),
            "cifar100": ((None, None), (22.17, 22.48)),
        },
    },
}
