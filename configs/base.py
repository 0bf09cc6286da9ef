"""Every field of a config, with its default. A study's config starts from here and changes some.

Below them what the studies share: the words of a cell, the cells of a table and what a table claims.

A config file is code, which --config executes: run only those you trust.
"""

import functools
import itertools
import re
from fractions import Fraction
from typing import NamedTuple

from ml_collections import ConfigDict

from dropbn.errors import DropbnError, unknown
from dropbn.study.claims import METRICS, Claim
from dropbn.study.placements import DATASETS


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # of the initial weights, the order of the data, the augmentation and the noise
    config.batch_size = 128  # images a step, over all devices
    # Durations are one number and one unit: "164 epochs", "2000 steps" or "640000 examples". An epoch leaves
    # out the images that fill no batch, other ones each time. A study counts the accuracy of the last epoch,
    # with validation images that of their best one.
    config.duration = "10 epochs"
    config.checkpoint_every = "1 epochs"  # what is lost at most when the machine dies
    config.log_every = "100 steps"  # from one look at the losses to the next: a run that diverged stops there

    config.task = "classify"  # or "reconstruct": outputs are pixels, "accuracy" is the variance explained

    config.data = data = ConfigDict()
    data.name = "digits"  # or "folder:PATH" with PATH/train/<class>/*.png, or "npz:PATH"
    data.dir = ""  # where prepared data lies; "" is tensorflow-datasets' default, ~/tensorflow_datasets
    data.image_size = 0  # pixels of a side; 0: in memory as they are; else streamed, decoded as needed
    # "70:15:15" divides all images anew into train, validation and test, the same for every seed; "80:0:20"
    # without validation; "": as published.
    data.split = ""
    data.train_examples = 0  # so many training images; 0: all
    data.subset_seed = -1  # draws these training images at random; -1: they are evenly spread over all
    # Of images in memory, in training:
    data.crop_padding = 0  # pixels of zeros around a training image before a random crop of its size
    data.flip = False  # flips half of the training images from left to right; of streamed ones too
    # Of streamed images (dropbn/data/photos.py):
    data.resize = 256  # pixels of the shorter side before the crop to image_size
    data.crop_scale = ()  # in training, (least, largest) share of the area of a random part; (): the whole
    data.part_size = 0  # pixels of a side of that part before its middle is cropped; 0: image_size
    data.rotation = 0.0  # in training, largest angle, degrees
    data.jitter = 0.0  # in training, of brightness, contrast and saturation
    data.workers = 0  # processes that read images; 0: threads

    config.model = model = ConfigDict()
    model.name = "preresnet"  # a family of dropbn/models
    model.num_classes = 0  # outputs; 0: as many as the data has classes
    model.depth = 20  # as in the network's name; each family says which depths it has
    model.width = 16  # channels of the first stage, mostly; each family says what it counts
    model.cardinality = 8  # groups of a resnext's convolutions
    # The order of the layers of a block and of the head, "" being the published one of the model; the
    # language is described in dropbn/nn/order.py.
    model.block = ""
    model.head = ""
    model.place = (
        ""  # a named position (dropbn/nn/places.py): "a", "P4", "H4", "last", ...; "before", "after"
    )
    model.activation = ""  # what "act" stands for in the orders
    # "he_fan_out" (dense layers: uniform, as PyTorch), "timm" (fan-out of one group, as its EfficientNet),
    # "he_fan_in", "orthogonal", "lsuv" (orthogonal, scaled on the first batch_size plain images) or
    # "hendrycks" (for the activation and the noise's rate).
    model.init = "he_fan_out"
    model.dtype = "float32"  # or "bfloat16": computation only; parameters and statistics stay float32

    model.noise = noise = ConfigDict()
    noise.kind = "dropout"  # "dropout", "gaussian" or "uout"
    noise.rate = 0.0  # drop probability; for dropout and gaussian
    noise.beta = 0.0  # half width; for uout
    noise.scale_at = "train"  # or "test", as the original dropout; for dropout
    noise.restore = ""  # "sqrt_keep" or "exact" restores the variance in training; for dropout

    model.bn = bn = ConfigDict()
    bn.momentum = 0.9  # share of the old running statistics that a step keeps (PyTorch's 0.1)
    bn.epsilon = 1e-5
    bn.use_scale, bn.use_bias = True, True  # whether a learned scale and bias follow
    bn.scale_init, bn.bias_init = 1.0, 0.0
    bn.group_size = 0  # images per statistic; 0: the whole batch, over all devices

    model.sparsity = sparsity = ConfigDict()
    sparsity.target = 0.05  # mean activation that "sparse" in an order asks of every unit
    sparsity.weight = 0.01  # of its penalty

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4  # L2, on all parameters (BN's and biases too), added to the gradient
    optimizer.schedule = "constant"  # "constant", "step" or "cosine" (to zero at the end)
    optimizer.decay_at = ("81 epochs", "122 epochs")  # when schedule="step" multiplies by decay_factor
    optimizer.decay_factor = 0.1
    optimizer.warmup = "0 epochs"  # linear from zero, before any schedule

    config.eval = evaluation = ConfigDict()
    # Training images, evenly spread and without augmentation, for the accuracy in test mode after each
    # epoch and for the tables of eval.py; 0: all of them.
    evaluation.train_examples = 10_000

    return config


# What the words of a cell set, in every study.
WORDS = {"place": "model.place", "rate": "model.noise.rate", "beta": "model.noise.beta", "seed": "seed"}
# What `quick` sets for every network, before the network's own: two steps of a laptop, on digits.
QUICK = {
    "data.name": "digits",
    "data.crop_padding": 0,
    "data.split": "",
    "duration": "2 steps",
    "batch_size": 16,
    "optimizer.schedule": "constant",
    "optimizer.warmup": "0 epochs",
    "eval.train_examples": 100,
}
PHOTOS = {
    "data.image_size": 32,
    "data.resize": 36,
    "data.part_size": 0,
}  # of QUICK, for networks that halve more often


def cell(arg: str, networks: dict, *, places: tuple[str, ...], rate: float = 0.0, words: dict | None = None):
    """One cell of a paper's table: "network,dataset[,place=...][,rate=...|,beta=...][,seed=...][,quick]".

    Args:
      arg: the cell, as after the colon of --config=configs/study.py:ARG.
      networks: name -> {"fields": of the config, by dotted path, "quick": those for a laptop}.
      places: the positions that the study knows.
      rate: the drop probability where a place is given without one.
      words: further words of the study -> the field that they set, by dotted path.

    Raises:
      DropbnError: a word that is none of these.
    """
    given = arg.split(",")
    if len(given) < 2:
        raise DropbnError(f"'{arg}': give network,dataset first, such as {next(iter(networks))},cifar10.")
    (network, dataset, *rest), config = given, get_config()
    if network not in networks:
        raise unknown("network", network, networks)
    words = {key: path for key, path in WORDS.items() if places or key != "place"} | (words or {})
    config.update_from_flattened_dict({"data.name": dataset, **networks[network]["fields"]})
    for word in rest:
        set_word(config, word, words, QUICK | networks[network]["quick"])
    place = config.model.place
    if place and place not in places:
        raise unknown("place", place, places)
    if place and rate and not any(word.startswith(("rate=", "beta=")) for word in rest):
        config.model.noise.rate = rate
    if config.model.noise.beta:
        config.model.noise.kind = "uout"
    return config


def set_word(config: ConfigDict, word: str, words: dict, quick: dict) -> None:
    """Sets what a word of a cell says.

    Args:
      config: the config, changed in place.
      word: "key=value", a number also as a fraction, or "quick".
      words: key -> the field that it sets, by dotted path.
      quick: the fields that "quick" sets.

    Raises:
      DropbnError: a word that is none of these, a value that is no number where one is wanted.
    """
    key, equals, value = word.partition("=")
    if word == "quick":
        config.update_from_flattened_dict(quick)
        return
    if not equals or key not in words:
        raise unknown("word", word, (*(f"{key}=" for key in words), "quick"))
    *parents, field = words[key].split(".")
    group = functools.reduce(getattr, parents, config)
    try:
        # Fractions, because dropout 1/13 has the variance of Uout 0.5.
        group[field] = type(group[field])(Fraction(value) if isinstance(group[field], float) else value)
    except (ValueError, ZeroDivisionError):
        raise DropbnError(f"'{word}' gives no number.") from None


def cells(tables: dict, name: str, *, blank: bool = False) -> list[dict]:
    """The cells of a study's table.

    Args:
      tables: name -> {"networks", "columns": what each column adds to "network,dataset", "paper": dataset ->
        a row for each network with a value for each column, None where the paper ran no such cell}; and
        "adjusted": values with BN's statistics taken again, as "paper", where the paper gives them. For
        `claims` also "pairs", "labels" and "source".
      name: of the table.
      blank: whether cells without a value are listed too.

    Returns:
      [{"arg": a cell that `get_config` takes, "paper": the paper's value, "adjusted": the same with adjusted
      statistics, or None}].

    Raises:
      DropbnError: an unknown name.
    """
    if name not in tables:
        raise unknown("table", name, tables)
    paper, adjusted = (_by_cell(tables[name], key) for key in ("paper", "adjusted"))
    return [
        {"arg": arg, "paper": value, "adjusted": adjusted.get(arg)}
        for arg, value in paper.items()
        if blank or value is not None
    ]


def _by_cell(table, key):
    return {
        f"{network},{dataset}{column}": value
        for dataset, rows in table.get(key, {}).items()
        for network, row in zip(table["networks"], rows, strict=True)
        for column, value in zip(table["columns"], row, strict=True)
    }


# What claims call the words of a cell.
PHRASES = {
    "rate": "dropout {}",
    "Gaussian rate": "Gaussian dropout {}",
    "beta": "Uout {}",
    "bn": "BN {}",
    "affine": "scale and bias",
    "activation": "{}",
    "weight_decay": "weight decay {}",
    "block": "blocks {}",
}  # else the word and its value
PLACES = {"a": "(a)", "b": "(b)", "last": "the classifier"}


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
      label: the cell in words.
      arg: the cell.
      metric: the number compared, of `dropbn.study.claims.METRICS`.
      paper: the paper's accuracy in %.
    """

    label: str
    arg: str
    metric: str = "accuracy"
    paper: float | None = None


def label(column: str, plain: str = "no dropout") -> str:
    """A column in words: ",place=a,rate=0.5" is "dropout 0.5 at (a)"; `plain` is what "" is called."""
    words = dict(word.partition("=")[::2] for word in column.split(",") if word)
    place, kind = words.pop("place", ""), words.pop("kind", "")
    if kind == "gaussian":
        words = {f"Gaussian {key}" if key == "rate" else key: value for key, value in words.items()}
    noise = ", ".join(PHRASES.get(key, f"{key} {{}}").format(value) for key, value in words.items())
    return " at ".join(part for part in (noise, PLACES.get(place, place)) if part) or plain


def against_first(columns: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The pairs of every column and the first one."""
    return tuple((column, columns[0]) for column in columns[1:])


def claim(
    more: Side, less: Side, where: str, source: str, *, paper: float | None = None, sign: int = 1
) -> Claim:
    """The claim that the number of `more` is above that of `less`; with sign 0 the question.

    Args:
      more: the side that is larger according to the source.
      less: the other side.
      where: network and dataset, in words.
      source: who says so.
      paper: the source's difference.
      sign: 1, or 0 where no source says which is larger.
    """
    quantity = METRICS[more.metric].quantity
    phrases = (METRICS[side.metric].prefix + side.label for side in (more, less))
    sentence = (" above " if sign else " against ").join(phrases)
    sentence += f" in {quantity} ({where})" if quantity != "accuracy" else f" ({where})"
    less_metric = "" if less.metric == more.metric else less.metric
    return Claim(sentence, more.arg, less.arg, more.metric, source, paper, less_metric, sign)


def claims(
    tables: dict,
    name: str,
    *,
    source: str,
    networks: dict[str, str],
    metric: str = "accuracy",
    adjusted: tuple[str, ...] = ("adjusted_accuracy", "literally_adjusted_accuracy"),
    plain: str = "no dropout",
) -> list[Claim]:
    """What a study's table claims: of two cells, that the one with the better value is more accurate.

    The cells are those of the table's "pairs" of columns, by default every column and the first one, and the
    "adjusted" values against the unadjusted ones of the same cell. The values decide which is better, also
    where a pair goes against the rule that the paper draws from the table. Equal and missing values claim
    nothing. Differences are in points of accuracy.

    Args:
      tables: as for `cells`. A table's "labels" are words for columns that `label` would call otherwise;
        "source" is the part of the source, by default the table's name.
      name: of the table.
      source: the paper.
      networks: name -> its name in the paper.
      metric: what the values are, in %: "accuracy" or "error".
      adjusted: the metrics of ours that the "adjusted" values are compared with, a claim each.
      plain: what the column "" is called.

    Raises:
      DropbnError: an unknown name of a table.
    """
    values, table = {cell["arg"]: cell for cell in cells(tables, name)}, tables[name]
    columns, labels = table["columns"], table.get("labels", {})
    # "table3" is "Table 3".
    source += ", " + table.get("source", re.sub(r"(?<=[a-z])(?=\d)", " ", name).capitalize())

    def side(cell, column, key, ours):
        value = values.get(cell + column, {}).get(key)
        accuracy = 100 - value if value is not None and metric == "error" else value
        return Side(labels.get(column) or label(column, plain), cell + column, ours, accuracy)

    pairs = table.get("pairs", against_first(columns))
    compared = [tuple((column, "paper", "accuracy") for column in pair) for pair in pairs]
    compared += [
        ((column, "adjusted", ours), (column, "paper", "accuracy")) for column in columns for ours in adjusted
    ]
    found = []
    for dataset, network in itertools.product(table["paper"], table["networks"]):
        where = f"{networks[network]}, {DATASETS[dataset]}"
        for pair in compared:
            found += _ranked(*(side(f"{network},{dataset}", *given) for given in pair), where, source)
    return found


def _ranked(one, other, where, source):
    """[the claim that the more accurate side is above the other], [] where the values say nothing."""
    if None in (one.paper, other.paper) or one.paper == other.paper:
        return []
    less, more = sorted((one, other), key=lambda side: side.paper)
    return [claim(more, less, where, source, paper=round(more.paper - less.paper, 4))]
