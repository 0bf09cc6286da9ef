"""The cells of a study: how the words of a cell set a config's fields, and which cells a table has.

The files of `configs/` describe their tables with these functions.
"""

import functools
from fractions import Fraction

from ml_collections import ConfigDict

from dropbn.errors import DropbnError, unknown

# The words that every study knows, and the fields that they set.
WORDS = {"place": "model.place", "rate": "model.noise.rate", "beta": "model.noise.beta", "seed": "seed"}
# What `quick` sets for every network, before the network's own fields: two steps on digits.
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
# What networks that halve the image more often add to QUICK.
PHOTOS = {"data.image_size": 32, "data.resize": 36, "data.part_size": 0}


def cell(
    config: ConfigDict,
    arg: str,
    networks: dict,
    *,
    places: tuple[str, ...],
    rate: float = 0.0,
    words: dict | None = None,
) -> ConfigDict:
    """The config of a cell: "network,dataset[,place=...][,rate=...|,beta=...][,seed=...][,quick]".

    Args:
      config: every field with its default; it is changed in place and returned.
      arg: the cell, as after the colon of --config=configs/study.py:ARG.
      networks: name -> {"fields": config fields by dotted path, "quick": the fields that `quick` sets}.
      places: the positions that the study knows.
      rate: the drop probability if a place is given without one.
      words: further words of the study -> the field that each of them sets, by dotted path.

    Raises:
      DropbnError: the cell has an unknown network, place or word.
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
    """Sets the field that a word of a cell names.

    Args:
      config: the config, changed in place.
      word: "quick" or "key=value"; a number may be a fraction.
      words: key -> the field that it sets, by dotted path.
      quick: the fields that "quick" sets.

    Raises:
      DropbnError: the word is unknown, or its value is not a number but the field is.
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
        raise DropbnError(f"'{word}': {key} takes a number.") from None


def of_table(tables: dict, name: str, *, blank: bool = False) -> list[dict]:
    """The cells of a study's table.

    Args:
      tables: name -> a table with "networks", "columns" (what each column adds to "network,dataset") and
        "paper" (dataset -> a row for each network, with a value for each column; None if the paper did not
        run the cell). "adjusted" has the same form as "paper" and holds the values with re-estimated BN
        statistics, if the paper gives them. `claims.claims_of_table` also reads "pairs", "labels" and
        "source".
      name: the name of the table.
      blank: whether cells without a value are listed too.

    Returns:
      [{"arg": a cell that `get_config` takes, "paper": the paper's value or None, "adjusted": its value with
      re-estimated statistics or None}].

    Raises:
      DropbnError: there is no table of this name.
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
