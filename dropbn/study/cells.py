"""The language of studies: the words of a cell, the cells of a table, and what a table claims of them.

The files of `configs/` are written in it.
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


def cell(
    config: ConfigDict,
    arg: str,
    networks: dict,
    *,
    places: tuple[str, ...],
    rate: float = 0.0,
    words: dict | None = None,
) -> ConfigDict:
    """One cell of a paper's table: "network,dataset[,place=...][,rate=...|,beta=...][,seed=...][,quick]".

    Args:
      config: every field with its default; it is changed in place and returned.
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
    network, dataset, *rest = given
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


def of_table(tables: dict, name: str, *, blank: bool = False) -> list[dict]:
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
      tables: as for `of_table`. A table's "labels" are words for columns that `label` would call otherwise;
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
    values, table = {cell["arg"]: cell for cell in of_table(tables, name)}, tables[name]
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
