"""Kim et al. 2023, "How to use dropout correctly on residual networks with batch normalization" (UAI).

Dropout 0.2 in a named position of a residual branch or a head:

    python train.py --config=configs/kim2023.py:preresnet110,cifar100,place=P6
    python train.py --config=configs/kim2023.py:resnetv2_50,caltech101,place=H4
    python train.py --config=configs/kim2023.py:wrn28_2,cifar10,place=P5,quick

The first word is a network (`NETWORKS`), the second a dataset. Further words: place, rate, seed, and `quick`,
which shrinks the run for a laptop and takes digits. Places are P0 to P7, P6+P7, H1 to H6, and the paper's
guidelines: G1 is after the branch's last BN (P5 under pre-activation, the end of the branch in ResNetV1), G2
is between the head's last BN and pooling (H4 here). Settings (section 4, supplement and the authors' code):

- CIFAR: 164 epochs, SGD with momentum 0.9, learning rate 0.1 divided by 10 at epochs 81 and 122, weight decay
  1e-4, batch 128, pad-4 crop and flip. The training code is not published. The accuracy here is that of the
  last epoch (the paper does not say whether theirs is the last or the best), and all parameters are decayed.
  The supplement names neither the dataset of its wide residual networks (the numbers suggest CIFAR-10) nor
  their training (ours is this one).
- Caltech-101 and Oxford-IIIT Pet: all images divided 70:15:15, 224 pixels, random parts of 80 to 100 % of the
  area, rotation 15, jitter 0.4, flip; 200 epochs from scratch, learning rate 0.1, cosine, weight decay 2e-3,
  batch 128; the test accuracy is that of the checkpoint with the best validation accuracy. All parameters
  are decayed, as in the authors' code (kmbmjn/DropoutCorrectly, train.py, whose example has weight decay
  5e-3). The classifier's weights are PyTorch's uniform ones; timm's ResNetV2 has N(0, 0.01^2).
- ImageNet: learning rate 0.6, 240 epochs, cosine after 5 epochs of warm-up from 0 (1e-5 there), weight decay
  1e-4. The paper names timm (huggingface/pytorch-image-models) but not its options. Initial weights are
  timm's for MobileNetV2 and EfficientNet ("timm") and for DenseNet's convolutions ("he_fan_in"). Nesterov
  momentum is a guess, since timm's "sgd" has it. Differences: timm decays no biases and no parameters of BN,
  while we decay all. Its ResNet begins the last BN of a branch with scale 0, ours with 1. Classifiers begin
  with PyTorch's uniform biases (timm: 0 but for ResNet), DenseNet's with He's weights (timm: PyTorch's), and
  the layers of "se" with Flax's weights (timm: as its convolutions). Batch 768 is ours (the paper gives
  none); its label smoothing, random erasing and RandAugment are not implemented. The accuracy is that of the
  last epoch; we do not know which theirs is.

An epoch leaves out the images that do not fill a batch; PyTorch's loader in their train.py keeps them.

`sweep(table)` lists the cells of "table1" (positions), "supplement_g" (two at once), "table2" (other training
and blocks), "table3" (ResNetV1), "table4" (photographs), "table5" and "table6" (heads) and "supplement1"
(widths), with the paper's test accuracy in %, the mean of three seeds. `claims(table)` lists what follows:
every position against none, P5 and P6 against P4, H4 against none and H5. Nothing follows from
"supplement_g", which has no other cell to compare with.
"""

from configs import base
from dropbn.models import preresnet
from dropbn.study import cells
from dropbn.study.claims import against_first, claims_of_table

_CIFAR = {
    "data.crop_padding": 4,
    "data.flip": True,
    "duration": "164 epochs",
    "optimizer.schedule": "step",
    "optimizer.decay_at": ("81 epochs", "122 epochs"),
    "optimizer.weight_decay": 1e-4,
}
_PHOTOS = {
    "data.image_size": 224,
    "data.resize": 256,
    "data.crop_scale": (0.8, 1.0),
    "data.part_size": 256,
    "data.rotation": 15.0,
    "data.jitter": 0.4,
    "data.flip": True,
    "data.split": "70:15:15",
    "eval.train_examples": 2000,
    "duration": "200 epochs",
    "optimizer.schedule": "cosine",
    "optimizer.weight_decay": 2e-3,
}
_IMAGENET = {
    "data.image_size": 224,
    "data.crop_scale": (0.08, 1.0),
    "data.flip": True,
    "eval.train_examples": 2000,
    "duration": "240 epochs",
    "batch_size": 768,
    "optimizer.schedule": "cosine",
    "optimizer.learning_rate": 0.6,
    "optimizer.warmup": "5 epochs",
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 1e-4,
}
_TIMM = _IMAGENET | {"model.init": "timm"}


def _network(name, depth, width, training, quick_depth=8, quick_width=4):
    quick = {"model.depth": quick_depth, "model.width": quick_width}
    return {
        "fields": {"model.name": name, "model.depth": depth, "model.width": width, **training},
        "quick": quick | (cells.PHOTOS if "data.image_size" in training else {}),
    }


def _preresnet50(**fields):
    network = _network("preresnet", 50, 16, _CIFAR)
    return network | {"fields": network["fields"] | fields}


NETWORKS = {
    **{
        f"{name}{depth}": _network(name, depth, 16, _CIFAR)
        for name in ("preresnet", "resnet")
        for depth in (50, 110)
    },
    **{f"wrn28_{k}": _network("wrn", 28, 16 * k, _CIFAR, quick_depth=10) for k in (10, 5, 2, 1)},
    # Table 2: preresnet50 with one thing changed. The depth of its bottleneck network, 9n + 2, is not given.
    "preresnet50_wd1e-3": _preresnet50(**{"optimizer.weight_decay": 1e-3}),
    "preresnet50_wd1e-5": _preresnet50(**{"optimizer.weight_decay": 1e-5}),
    "preresnet50_bottleneck": {
        "fields": {**_preresnet50()["fields"], "model.block": preresnet.BOTTLENECK, "model.depth": 56},
        "quick": {"model.depth": 11, "model.width": 4},
    },
    "preresnet50_elu": _preresnet50(
        **{"model.block": "[bn elu conv bn elu conv | conv]", "model.head": "bn elu gap dense"}
    ),
    # Tables 4 and 5.
    **{
        f"resnetv2_{depth}": _network("preresnet_imagenet", depth, 64, _PHOTOS, quick_depth=14)
        for depth in (50, 101)
    },
    # Table 6.
    "mobilenetv2_140": _network("mobilenetv2", 53, 140, _TIMM, quick_depth=23, quick_width=10),
    "efficientnet_b0": _network("efficientnet", 50, 100, _TIMM, quick_depth=23, quick_width=10),
    "resnet50_imagenet": _network("resnet_imagenet", 50, 64, _IMAGENET, quick_depth=14),
    "densenet169": _network(
        "densenet_imagenet", 169, 32, _IMAGENET | {"model.init": "he_fan_in"}, quick_depth=13
    ),
}


def get_config(arg="preresnet110,cifar10"):
    positions = [*(f"P{i}" for i in range(8)), "P6+P7", "G1", *(f"H{i}" for i in range(1, 7)), "G2"]
    return cells.cell(base.get_config(), arg, NETWORKS, places=tuple(positions), rate=0.2)


NAMES = {
    **{f"preresnet{depth}": f"PreResNet-{depth}" for depth in (50, 110)},
    **{f"resnet{depth}": f"ResNetV1-{depth}" for depth in (50, 110)},
    **{f"wrn28_{k}": f"WRN-28-{k}" for k in (10, 5, 2, 1)},
    "preresnet50_wd1e-3": "PreResNet-50, weight decay 1e-3",
    "preresnet50_wd1e-5": "PreResNet-50, weight decay 1e-5",
    "preresnet50_bottleneck": "PreResNet-50, bottlenecks",
    "preresnet50_elu": "PreResNet-50, ELU",
    **{f"resnetv2_{depth}": f"ResNetV2-{depth}" for depth in (50, 101)},
    "mobilenetv2_140": "MobileNetV2(1.4)",
    "efficientnet_b0": "EfficientNet-B0",
    "resnet50_imagenet": "ResNet-50",
    "densenet169": "DenseNet-169",
}
METRIC = "accuracy"  # what the tables count, in %


def sweep(table):
    """The cells of a table: [{"arg": for get_config, "paper": test accuracy in %, "adjusted": None}]."""
    return cells.of_table(TABLES, table)


def claims(table):
    """What a table claims: see `claims_of_table`."""
    return claims_of_table(TABLES, table, source="Kim et al. 2023", networks=NAMES, metric=METRIC)


_POSITIONS = ("", *(f",place=P{i}" for i in range(8)))
_HEADS = {
    "columns": ("", ",place=H4", ",place=H5"),
    "pairs": ((",place=H4", ""), (",place=H4", ",place=H5")),
}


TABLES = {
    "table1": {
        "networks": ("preresnet50", "preresnet110"),
        "columns": _POSITIONS,
        # And Guideline 1: after the branch's last BN (P5, P6) rather than right before it (P4).
        "pairs": (
            *against_first(_POSITIONS),
            (",place=P5", ",place=P4"),
            (",place=P6", ",place=P4"),
        ),
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
    "supplement1": {
        "source": "supplement, Table 1",
        "networks": ("wrn28_10", "wrn28_5", "wrn28_2", "wrn28_1"),
        "columns": ("", ",place=G1"),
        "paper": {
            "cifar10": ((96.1667, 96.2433), (95.7733, 96.1233), (94.9100, 94.9367), (93.0433, 93.2433)),
        },
    },
    "supplement_g": {
        "networks": ("preresnet50", "preresnet110"),
        "columns": (",place=P6+P7",),
        "paper": {"cifar10": ((93.4867,), (94.1833,)), "cifar100": ((72.04,), (73.6667,))},
    },
    "table2": {
        "networks": tuple(name for name in NETWORKS if name.startswith("preresnet50_")),
        "columns": ("", ",place=G1"),
        "paper": {
            "cifar10": ((93.2100, 93.3567), (92.3733, 92.8133), (93.7667, 93.7933), (92.6100, 92.7433))
        },
    },
    "table4": {
        "networks": ("resnetv2_50", "resnetv2_101"),
        "columns": ("", ",place=G1"),
        "paper": {
            "caltech101": ((83.3212, 83.7831), (83.8074, 84.1964)),
            "oxford_iiit_pet": ((83.8147, 83.9049), (84.5668, 85.5897)),
        },
    },
    "table5": {
        "networks": ("resnetv2_50", "resnetv2_101"),
        **_HEADS,
        "paper": {
            "caltech101": ((83.321, 83.978, 83.005), (83.807, 84.999, 83.662)),
            "oxford_iiit_pet": ((83.815, 84.988, 84.416), (84.567, 85.229, 85.259)),
        },
    },
    "table6": {
        "networks": ("mobilenetv2_140", "efficientnet_b0", "resnet50_imagenet", "densenet169"),
        **_HEADS,
        "paper": {
            "imagenet2012": (
                (75.714, 75.820, 75.718),
                (77.156, 77.240, 76.976),
                (78.834, 78.932, 78.546),
                (79.066, 79.152, 79.036),
            )
        },
    },
}
