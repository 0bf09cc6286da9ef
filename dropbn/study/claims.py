"""The claims of a study: that a number of one cell of a table is larger than a number of another.

`claims_of_table` reads them off the values of a paper's table; the files of `configs/` use it. What our seeds
say to a claim is in `verdicts`.
"""

import itertools
import re
from typing import NamedTuple

from dropbn.study.cells import of_table
from dropbn.study.placements import DATASETS


class Metric(NamedTuple):
    """The words for one of `numbers.NUMBERS`.

    Attributes:
      quantity: what the number is called in a sentence.
      prefix: what stands before the name of a cell in a sentence.
      images: for an accuracy, the key of `Finished.correct` that says which images are right; else "".
    """

    quantity: str
    prefix: str = ""
    images: str = ""


# The numbers that a claim can be about.
METRICS = {
    "accuracy": Metric("accuracy", images="running"),
    "adjusted_accuracy": Metric("accuracy", "adjusted ", "li2018_torch"),
    "literally_adjusted_accuracy": Metric("accuracy", "literally adjusted ", "li2018"),
    "recalibrated_accuracy": Metric("accuracy", "recalibrated ", "dropout_off"),
    "test_loss": Metric("test loss"),
    "shift": Metric("largest shift"),
    "train_gap": Metric("train mode minus test mode"),
    "loss": Metric("training loss"),
    "penalty": Metric("sparsity penalty"),
    "loss_after_a_tenth": Metric("training loss after a tenth of the steps"),
    "loss_after_a_third": Metric("training loss after a third of the steps"),
    "steps_to_loss_0.1": Metric("steps to a training loss of 0.1"),
    "objective_after_a_tenth": Metric("loss + penalty after a tenth of the steps"),
    "objective_after_a_third": Metric("loss + penalty after a third of the steps"),
    "steps_to_objective_0.6": Metric("steps to a loss + penalty of 0.6"),
}


class Claim(NamedTuple):
    """The claim that a number of one cell is larger than a number of another, or the question whether it is.

    Attributes:
      claim: the sentence.
      more: arg of the cell whose number is larger according to the source.
      less: arg of the other cell; the same cell if the metrics differ.
      metric: the number, one of `METRICS`.
      source: where the claim is made.
      paper: the source's difference, more - less (in points for accuracies); None if it gives none.
      less_metric: the number of `less`; "" if it is `metric` too.
      sign: 1 for a claim; 0 for a question that no source answers.
    """

    claim: str
    more: str
    less: str
    metric: str
    source: str
    paper: float | None = None
    less_metric: str = ""
    sign: int = 1


# How claims name the words of a cell; other words are named by key and value.
PHRASES = {
    "rate": "dropout {}",
    "gaussian rate": "Gaussian dropout {}",
    "spatial rate": "spatial dropout {}",
    "stochastic_depth rate": "stochastic depth {}",
    "dropblock rate": "DropBlock {}",
    "block_size": "blocks of {}",
    "alpha rate": "alpha dropout {}",
    "beta": "Uout {}",
    "bn": "BN {}",
    "affine": "scale and bias",
    "activation": "{}",
    "weight_decay": "weight decay {}",
    "block": "blocks {}",
}
PLACES = {"a": "(a)", "b": "(b)", "last": "the classifier"}


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
      label: the cell in words.
      arg: the cell.
      metric: the number that is compared, one of `METRICS`.
      paper: the paper's accuracy in %, if it gives one.
    """

    label: str
    arg: str
    metric: str = "accuracy"
    paper: float | None = None


def label(column: str, plain: str = "no dropout") -> str:
    """A column in words: ",place=a,rate=0.5" is "dropout 0.5 at (a)", and "" is `plain`."""
    words = dict(word.partition("=")[::2] for word in column.split(",") if word)
    place, kind = words.pop("place", ""), words.pop("kind", "")
    if kind:
        words = {f"{kind} {key}" if key == "rate" else key: value for key, value in words.items()}
    noise = ", ".join(PHRASES.get(key, f"{key} {{}}").format(value) for key, value in words.items())
    return " at ".join(part for part in (noise, PLACES.get(place, place)) if part) or plain


def against_first(columns: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each column except the first, paired with the first."""
    return tuple((column, columns[0]) for column in columns[1:])


def compare(
    more: Side, less: Side, where: str, source: str, *, paper: float | None = None, sign: int = 1
) -> Claim:
    """The claim that the number of `more` is above that of `less`; with sign 0, the question whether it is.

    Args:
      more: the side that is larger according to the source.
      less: the other side.
      where: network and dataset, in words.
      source: where the claim is made.
      paper: the source's difference, more - less.
      sign: 1, or 0 if no source says which is larger.
    """
    quantity = METRICS[more.metric].quantity
    phrases = (METRICS[side.metric].prefix + side.label for side in (more, less))
    sentence = (" above " if sign else " against ").join(phrases)
    sentence += f" in {quantity} ({where})" if quantity != "accuracy" else f" ({where})"
    less_metric = "" if less.metric == more.metric else less.metric
    return Claim(sentence, more.arg, less.arg, more.metric, source, paper, less_metric, sign)


def claims_of_table(
    tables: dict,
    name: str,
    *,
    source: str,
    networks: dict[str, str],
    metric: str = "accuracy",
    adjusted: tuple[str, ...] = ("adjusted_accuracy", "literally_adjusted_accuracy"),
    plain: str = "no dropout",
) -> list[Claim]:
    """The claims of a paper's table: of two cells, the one with the better value is more accurate.

    Two columns are compared for each of the table's "pairs", by default each column and the first one. The
    "adjusted" value of a cell is compared with its unadjusted value. The values decide which side is better,
    even if the paper's own rule says otherwise for most pairs. Equal and missing values make no claim.
    Differences are in points of accuracy.

    Args:
      tables: as for `cells.of_table`. A table's "labels" are words for columns that `label` would name
        differently; its "source" is the part of the paper, by default the table's name.
      name: the name of the table.
      source: the paper.
      networks: name -> the paper's name for the network.
      metric: what the values are, in %: "accuracy" or "error".
      adjusted: our metrics that stand for the paper's "adjusted" values; each makes a claim.
      plain: the words for the column "".

    Raises:
      DropbnError: there is no table of this name.
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
        cell, where = f"{network},{dataset}", f"{networks[network]}, {DATASETS[dataset]}"
        for one, other in compared:
            found += _ranked(side(cell, *one), side(cell, *other), where, source)
    return found


def _ranked(one, other, where, source):
    """[the claim that the more accurate side is above the other], or [] if the values say nothing."""
    if None in (one.paper, other.paper) or one.paper == other.paper:
        return []
    less, more = sorted((one, other), key=lambda side: side.paper)
    return [compare(more, less, where, source, paper=round(more.paper - less.paper, 4))]
