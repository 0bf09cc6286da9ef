"""The papers' figures drawn from a study's own runs, with the papers' own curves and values beside them.

Every figure is a pure function of the cells of one network on one dataset. It is None if the cells do not
have what it shows. A paper's values are drawn with the gid "paper".
"""

import collections
import os
import re

import numpy as np
from matplotlib.figure import Figure

from dropbn import plots, writers
from dropbn.study import estimates, placements, verdicts
from dropbn.study.finished_runs import Cell
from dropbn.study.li2018_figures import error_bars, shift_curves, training_curves, weights

_POSITION = re.compile(r"[PGH]\d(\+P\d)?")
_BN_COLORS = {
    "no BN": "0.6",
    "BN before": plots.COLORS[0],
    "BN before, scale and bias": plots.COLORS[5],
    "BN after": plots.COLORS[1],
    "BN after, scale and bias": plots.COLORS[4],
}
# figure -> sentences of its caption: what it shows, which part is ours, which is the paper's.
_CAPTIONS = {
    "shift": (
        "The variance shift of every BN layer: the larger of real / remembered variance and its inverse.",
        "{ours}: mean, smallest and largest.",
        "Beside it: Li et al. (2018), Fig. 4, {li2018}.",
    ),
    "error": (
        "Test error by drop probability.",
        "Bars: {ours}, mean and 95 % interval.",
        "Diamonds: Li et al. (2018), Fig. 4, {li2018}.",
    ),
    "weights": (
        "How far filters are from zero sum: cos² θ by layer, d cos² θ by the number d of a filter's weights.",
        "Blue: {ours}, without noise: mean, smallest and largest.",
        "Grey: Li et al. (2018), Fig. 3, {li2018}.",
    ),
    "training": (
        "Accuracy on the training images, in train mode (solid) and in test mode (dashed).",
        "{ours}: mean, smallest and largest.",
        "Beside it: Li et al. (2018), Fig. 5, {li2018}.",
    ),
    "positions": (
        "Test accuracy minus that without dropout, paired by seed, and largest shift of a BN, by position.",
        "Bars: {ours}, mean and 95 % interval (of accuracies also over test images if members record them).",
        "Diamonds: Kim et al. (2023).",
    ),
    "bn_places": (
        "Test accuracy by activation and by BN's place. The axis does not begin at 0.",
        "Bars: {ours}, mean and 95 % interval.",
        "Diamonds: caffenet-benchmark, one run each.",
    ),
}


def draw(cells: list[Cell], directory: str | os.PathLike, metric: str = "error") -> list[dict]:
    """Draws every figure that the cells allow, one file for each network, dataset and width.

    Args:
      cells: cells of any networks and datasets.
      directory: where the PNG files go; it is created if it does not exist.
      metric: what `Cell.paper` counts in %, "error" or "accuracy".

    Returns:
      {"file": its name, "caption": what it shows, which part is ours, which the paper's} for every figure.
    """
    directory = writers.make_directory(directory)
    groups: dict[tuple[str, ...], list[Cell]] = {}
    drawn = []
    for cell in cells:
        if cell.members:
            network, *words = cell.arg.split(",")
            # Only `bn_places` tells widths apart.
            widths = [
                word for word in words if word.startswith("width=") and not placements.bn_side(cell.config)
            ]
            groups.setdefault((network, cell.config["data"]["name"], *widths), []).append(cell)
    for key, group in groups.items():
        figures = {
            "shift": shift_curves(group),
            "error": error_bars(group),
            "weights": weights(group),
            "training": training_curves(group),
            "positions": positions(group, metric),
            "bn_places": bn_places(group, metric),
        }
        for name, figure in figures.items():
            if figure is not None:
                file = re.sub(r"[^\w.-]+", "_", "_".join((name, *key))) + ".png"
                plots.write(figure, directory / file)
                drawn.append({"file": file, "caption": _caption(name, figure, group)})
    return drawn


def positions(cells: list[Cell], metric: str = "accuracy") -> Figure | None:
    """Accuracy against no dropout, paired by seed, and largest shift, by position (Kim et al. 2023, Table 1).

    Means with 95 % intervals; those of accuracies are the intervals of `verdicts.judge`. The paper's
    differences follow from `Cell.paper`.

    Args:
      cells: cells of one network on one dataset. If they have several amounts of noise, the figure shows the
        one that most positions have.
      metric: what `Cell.paper` counts in %, "error" or "accuracy".
    """
    plain, found = placements.without_noise(cells), _by_position(cells)
    if plain is None or len(found) < 2:
        return None
    noise = placements.noise_words(placements.noise(next(iter(found.values())).config))
    figure, (left, right) = plots.panels(2, width=4.6)
    _category_axes(left, found, "accuracy against no dropout, points", f"position of {noise}")
    _category_axes(right, found, "largest shift  max(r, 1/r)", f"position of {noise}")
    color = plots.COLORS[0]
    for i, cell in enumerate(found.values()):
        if len(differences := verdicts.paired(cell, plain, "accuracy")):
            plots.bars(left, [i], [estimates.interval(differences)], 0.6, color=color)
        if shifts := list(cell.values("shift").values()):
            plots.bars(right, [i], [estimates.interval(shifts)], 0.6, 1, color=color)
        if None not in (cell.paper, plain.paper):
            difference = cell.paper - plain.paper
            left.plot(i, -difference if metric == "error" else difference, **plots.PAPER)
    left.axhline(0, color="0.25", linewidth=1)
    if shifts := list(plain.values("shift").values()):
        right.axhline(float(np.mean(shifts)), color="0.25", linestyle=":", label="no dropout")
        right.legend(frameon=False)
    _bend(left)
    plots.stretch(right)
    looks = {"ours": color, "Kim et al.": plots.PAPER}
    return plots.finish(figure, placements.describe(plain.config), looks)


def bn_places(cells: list[Cell], metric: str = "accuracy") -> Figure | None:
    """Accuracy without BN, with BN before and after the activations, by activation (caffenet-benchmark).

    Means with 95 % intervals over seeds; the benchmark's values are those of `Cell.paper`.

    Args:
      cells: cells of one network on one dataset.
      metric: what `Cell.paper` counts in %, "error" or "accuracy".
    """
    found: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        if cell.values("accuracy") and (words := _bn_words(cell, cells)):
            found.setdefault(_activation(cell), {}).setdefault(words, cell)
    drawn = [words for words in _BN_COLORS if any(words in bars for bars in found.values())]
    number = sum(map(len, found.values()))
    if set(drawn) <= {"no BN"} or number < 2:
        return None
    figure, (axes,) = plots.panels(1, width=max(6.4, 1 + 0.55 * number))
    _category_axes(axes, found, "test accuracy, %")
    width = 0.8 / max(map(len, found.values()))
    heights = []
    for i, bars in enumerate(found.values()):
        bars = {words: bars[words] for words in drawn if words in bars}
        for k, (words, cell) in enumerate(bars.items()):
            at = i + (k - (len(bars) - 1) / 2) * width
            mean, half = estimates.interval(list(cell.values("accuracy").values()))
            heights.append(mean)
            plots.bars(axes, [at], [(mean, half)], 0.9 * width, color=_BN_COLORS[words])
            if cell.paper is not None:
                height = 100 - cell.paper if metric == "error" else cell.paper
                axes.plot(at, height, **plots.PAPER, markersize=5)
    axes.set_ylim(max(0, np.floor(2 * min(heights) - max(heights) - 1)), min(100, axes.get_ylim()[1]))
    looks = {words: _BN_COLORS[words] for words in drawn} | {"caffenet-benchmark": plots.PAPER}
    return plots.finish(figure, placements.describe(cells[0].config), looks)


def _by_position(cells):
    """position -> cell, from the input to the output, at the amount of noise that most positions have."""
    noisy = [cell for cell in cells if _POSITION.fullmatch(cell.config["model"]["place"])]
    amounts = collections.Counter(placements.noise(cell.config) for cell in noisy)
    del amounts[placements.NONE]
    usual = amounts.most_common(1)[0][0] if amounts else None
    found = {cell.config["model"]["place"]: cell for cell in noisy if placements.noise(cell.config) == usual}
    return dict(sorted(found.items(), key=lambda item: ("PGH".index(item[0][0]), item[0])))


def _bn_words(cell, cells):
    """The place of the cell's BN, and its scale if the cells differ in that; "" if an order places BN."""
    side = placements.bn_side(cell.config)
    if side in (None, "none"):
        return "no BN" if side else ""
    scales = [
        other.config["model"]["bn"]["use_scale"]
        for other in cells
        if placements.bn_side(other.config) != "none"
    ]
    affine = not all(scales) and cell.config["model"]["bn"]["use_scale"]
    return f"BN {side}{', scale and bias' * affine}"


def _activation(cell):
    """The activation, and the other words of the cell that set it apart."""
    known = ("bn=", "activation=", "data=", "seed=", "affine", "quick")
    others = [word for word in cell.arg.split(",")[2:] if not word.startswith(known)]
    return "\n".join([cell.config["model"]["activation"] or "relu", *others])


def _category_axes(axes, names, ylabel, xlabel=""):
    plots.style(axes, xlabel, ylabel)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _bend(axes):
    """Makes an axis logarithmic beyond 1 point if one bar would hide the others."""
    lowest, highest = axes.get_ylim()
    if highest - lowest > 6:
        ticks = [sign * tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50) for sign in (-1, 1)]
        axes.set_yscale("symlog", linthresh=1)
        axes.set_yticks(sorted({tick for tick in ticks if lowest <= tick <= highest}))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.minorticks_off()
        axes.set_ylim(1.2 * lowest, 1.2 * highest)
        axes.set_ylabel(f"{axes.get_ylabel()}\n(logarithmic beyond 1)")


def _caption(name, figure, cells):
    """What the figure shows, which part is ours, and which is the paper's, if it has one."""
    what, ours, theirs = _CAPTIONS[name]
    numbers = sorted({len(cell.members) for cell in cells})
    seeds = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else numbers[0]
    sentences = [what, ours.format(ours=f"{placements.describe(cells[0].config)} (seeds: {seeds})")]
    if plots.holds_papers(figure):
        sentences.append(theirs.format(li2018=placements.describe_li2018(cells[0].config)))
    return " ".join(sentences)
