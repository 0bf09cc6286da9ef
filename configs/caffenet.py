"""ducha-aiki/caffenet-benchmark: BN before or after the activation, and dropout with BN, on ImageNet at 128.

    python train.py --config=configs/caffenet.py:caffenet,imagenet2012,bn=after
    python train.py --config=configs/caffenet.py:caffenet,imagenet2012,bn=after,affine,activation=elu
    python train.py --config=configs/caffenet.py:googlenet,imagenet2012,bn=before,affine,init=orthogonal,quick

The first word is a network (`NETWORKS`), the second a dataset. Further words: `bn=before` or `bn=after` every
activation (without it, no BN), `affine` for BN's scale and bias, activation (relu), rate of the dropout after
fc6 and fc7 (0.5; GoogLeNet's 0.4 before its classifier), width of fc6 and fc7, weight_decay, init (lsuv,
orthogonal), seed, and `quick`.

Settings (its prototxts): crops of 128 from images whose shorter side is 144, flip, SGD with momentum 0.9,
learning rate 0.01 divided by 10 every 100,000 of 320,000 steps, batch 256, L2 5e-4, LSUV; BN's
moving_average_fraction 0.95. GoogLeNet has L2 2e-4, and its BN counts 32 images at a time
(prototxt/bn_init/bn_before_googlenet128_lsuv.prototxt). Differences: biases, BN's included, have the weights'
decay and learning rate (CaffeNet's have no decay, and those of its layers twice the rate); channels are
normalized by ImageNet's mean and deviation; images are resized bilinearly; sigmoid and tanh train with batch
256 at once; GoogLeNet's learning rate falls by CaffeNet's steps (there linearly to 0); an epoch leaves out
the images that do not fill a batch (Caffe's batches run on into the next epoch). The accuracy is that of the
last step; we do not know which one theirs is.

`sweep(table)` lists cells with the benchmark's top-1 accuracy in %, one run each. From its batchnorm.md come
"position" (before and after, with and without scale and bias), "activation" (BN after it), "dropout" (BN
after ReLU), "init" and "googlenet"; from its pages on networks without BN come "activation_no_bn",
"dropout_no_bn", "width", "weight_decay" and "lrn". `claims(table)` lists what follows: BN after against
before, dropout 0.2 against 0.5 and 0, orthogonal against LSUV, else every cell against the first.
"""

from configs import base
from dropbn.errors import DropbnError
from dropbn.study import cells
from dropbn.study.claims import claims_of_table

_SOLVER = {
    "data.image_size": 128,
    "data.resize": 144,
    "data.flip": True,
    "eval.train_examples": 2000,
    "batch_size": 256,
    "duration": "320000 steps",
    "optimizer.learning_rate": 0.01,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule": "step",
    "optimizer.decay_at": ("100000 steps", "200000 steps", "300000 steps"),
    "model.bn.momentum": 0.95,
    "model.bn.use_scale": False,
    "model.bn.use_bias": False,
    "model.init": "lsuv",
    "model.activation": "relu",
    "model.noise.rate": 0.5,
    "model.block": "conv act",
}
_CAFFENET = {"model.width": 2048, "model.head": "flatten dense act drop dense act drop dense", **_SOLVER}
_QUICK_CAFFENET = {"model.width": 32, "data.image_size": 128, "data.resize": 128}
NETWORKS = {
    "caffenet": {"fields": {"model.name": "caffenet", **_CAFFENET}, "quick": _QUICK_CAFFENET},
    "caffenet_lrn": {"fields": {"model.name": "caffenet_lrn", **_CAFFENET}, "quick": _QUICK_CAFFENET},
    "googlenet": {
        "fields": {
            **_SOLVER,
            "model.name": "googlenet",
            "model.depth": 22,
            "model.width": 100,
            "model.noise.rate": 0.4,
            "model.bn.group_size": 32,
            "optimizer.weight_decay": 2e-4,
        },
        "quick": {"model.depth": 10, "model.width": 5, "model.bn.group_size": 0, **cells.PHOTOS},
    },
}
WORDS = {
    "activation": "model.activation",
    "width": "model.width",
    "weight_decay": "optimizer.weight_decay",
    "init": "model.init",
    "bn": "model.place",
}


def get_config(arg="caffenet,imagenet2012"):
    words = [word for word in arg.split(",") if word != "affine"]
    if any(word.startswith("place=") for word in words):
        raise DropbnError(
            "The benchmark's dropout stands after fc6 and fc7, so leave out place=; bn=before or bn=after "
            "places BN."
        )
    config = cells.cell(base.get_config(), ",".join(words), NETWORKS, places=("before", "after"), words=WORDS)
    config.model.bn.use_scale = config.model.bn.use_bias = "affine" in arg.split(",")
    return config


NAMES = {"caffenet": "CaffeNet", "caffenet_lrn": "CaffeNet with LRN", "googlenet": "GoogLeNet"}
METRIC = "accuracy"  # what the tables count, in %


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": top-1 accuracy in %, "adjusted": None}]."""
    return cells.of_table(TABLES, table)


def claims(table):
    """What a table claims: see `claims_of_table`."""
    return claims_of_table(
        TABLES, table, source="caffenet-benchmark", networks=NAMES, metric=METRIC, plain="no BN"
    )


def _column(words):
    return f",{words}" if words else ""


def _table(page, values, network="caffenet", pairs=()):
    """A page's table from {words of a cell: accuracy}, and pairs to compare if not all with the first."""
    table = {
        "networks": (network,),
        "columns": tuple(map(_column, values)),
        "paper": {"imagenet2012": (tuple(values.values()),)},
        "source": page,
    }
    return table | ({"pairs": tuple(tuple(map(_column, pair)) for pair in pairs)} if pairs else {})


TABLES = {
    "position": _table(
        "batchnorm.md",
        {"": 47.1, "bn=before": 47.4, "bn=before,affine": 47.8, "bn=after": 49.9, "bn=after,affine": 49.3},
        pairs=(("bn=after", "bn=before"), ("bn=after,affine", "bn=before,affine")),
    ),
    "activation": _table(
        "batchnorm.md",
        {
            "bn=after,activation=relu": 49.9,
            "bn=after,activation=rrelu": 50.0,
            "bn=after,activation=prelu": 50.3,
            "bn=after,activation=elu": 49.8,
            "bn=after,activation=maxout": 48.7,
            "bn=after,activation=sigmoid": 47.5,
            "bn=after,activation=tanh": 44.8,
            "bn=after,activation=identity": 38.4,
        },
    ),
    "activation_no_bn": _table(
        "Activations.md",
        {
            "activation=relu": 47.1,
            "activation=rrelu": 47.8,
            "activation=prelu": 48.5,
            "activation=elu": 48.8,
            "activation=maxout": 48.2,
            "activation=tanh": 40.1,
            "activation=identity": 38.9,
        },
    ),
    "dropout": _table(
        "batchnorm.md",
        {"bn=after,rate=0.5": 49.9, "bn=after,rate=0.2": 52.7, "bn=after,rate=0": 51.3},
        pairs=(("bn=after,rate=0.2", "bn=after,rate=0.5"), ("bn=after,rate=0.2", "bn=after,rate=0")),
    ),
    "dropout_no_bn": _table(
        "Regularization.md", {"rate=0.5": 47.1, "rate=0.3": 49.7, "rate=0.2": 49.4, "rate=0.1": 47.3}
    ),
    "width": _table(
        "Regularization.md",
        {
            "width=4096,rate=0.65": 46.5,
            "width=6144,rate=0.77": 44.7,
            "width=4096,rate=0.5": 49.7,
            "width=1433,rate=0": 45.6,
        },
    ),
    "weight_decay": _table(
        "Regularization.md", {"weight_decay=5e-4": 47.1, "weight_decay=1e-4": 45.0, "weight_decay=1e-5": 45.0}
    ),
    "lrn": _table("Activations.md", {"": 47.0}, network="caffenet_lrn"),
    "init": _table(
        "batchnorm.md",
        {
            "bn=before,affine,init=lsuv": 47.8,
            "bn=before,affine,init=orthogonal": 48.2,
            "bn=after,init=lsuv": 49.9,
            "bn=after,init=orthogonal": 50.0,
        },
        pairs=(
            ("bn=before,affine,init=orthogonal", "bn=before,affine,init=lsuv"),
            ("bn=after,init=orthogonal", "bn=after,init=lsuv"),
        ),
    ),
    "googlenet": _table(
        "batchnorm.md",
        {
            "": 61.9,
            "bn=before,affine,init=lsuv": 60.3,
            "bn=before,affine,init=orthogonal": 60.7,
            "bn=after,init=lsuv": 59.6,
            "bn=after,init=orthogonal": 58.4,
        },
        network="googlenet",
    ),
}
