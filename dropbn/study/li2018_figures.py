"""Figures 1, 3, 4 and 5 of Li et al. 2018 (arXiv:1801.05134v1), from a study's runs and the paper's own data.

Each is a pure function of the cells of one network on one dataset. It is None if the cells do not have what
it shows. The paper's data are those of the same family of networks: on CIFAR-100 for cells on CIFAR-100, else
on CIFAR-10. They are drawn with the gid "paper".
"""

import itertools
import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dropbn import plots
from dropbn.study import estimates, papers, placements
from dropbn.study.finished_runs import Cell

_PLAIN = "0.25"  # the color of no noise
_PLACES = {"a": "(a) before the last BN", "b": "(b) before the last weights", "last": "before the classifier"}
_PAPER = "Li et al."


def shift_curves(cells: list[Cell]) -> Figure | None:
    """The shift of every BN layer, with a panel for each place (Fig. 1 and the curves of Fig. 4).

    The shift is that of the paper's estimator if it was measured. Beside (a) and (b) stand the paper's curves
    for the same amounts of dropout, on the same scale.

    Args:
      cells: cells of one network on one dataset.
    """
    series = placements.series(cells)
    ours = {place: _shifts(curves) for place, curves in series.items()}
    ours = {place: curves for place, curves in ours.items() if curves.keys() - {placements.NONE}}
    if not ours:
        return None
    theirs = {place: _paper_shifts(cells, place, curves) for place, curves in ours.items() if place in "ab"}
    theirs = {place: curves for place, curves in theirs.items() if curves}
    panels = [(place, "", ours[place]) for place in theirs]
    panels += [(place, f", {_PAPER}", curves) for place, curves in theirs.items()]
    panels += [(place, "", curves) for place, curves in ours.items() if place not in theirs]
    noises = sorted({noise for curves in ours.values() for noise in curves} | {placements.NONE})
    colors = dict(zip(noises, itertools.cycle((_PLAIN, *plots.COLORS)), strict=False))
    columns, width = (2, 4.2) if len(panels) < 5 else (4, 3.2)
    figure, grid = plots.panels(len(panels), columns, width)
    first: dict[str, Axes] = {}
    for i, (axes, (place, source, curves)) in enumerate(zip(grid, panels, strict=True)):
        plots.style(axes, "BN layer index", "" if i % columns else "shift ratio  max(r, 1/r)")
        axes.set_title(_place_words(place, series[place]) + source, loc="left", fontsize="medium")
        if first.setdefault(place, axes) is not axes:
            axes.sharey(first[place])
        for noise, (at, runs) in curves.items():
            look = {"marker": "o", "markersize": 3} if len(at) < 50 else {"linewidth": 0.8}
            look = {"linewidth": 0.8, "gid": "paper"} if source else look
            plots.band(axes, at, runs, color=colors[noise], **look)
        axes.locator_params(axis="x", integer=True)
    for axes in grid:  # At least to 1.2, as the paper's (b): measurement noise should not fill a panel.
        top = max(axes.get_ylim()[1], 1.2)
        axes.set_ylim(max(0.9, 1 - 0.05 * (top - 1)), top)
        plots.stretch(axes)
    drawn = set().union(*ours.values(), *theirs.values())
    looks = {placements.noise_words(noise): color for noise, color in colors.items() if noise in drawn}
    return plots.finish(figure, _title(figure, cells), looks)


def error_bars(cells: list[Cell]) -> Figure | None:
    """Test error by drop probability in (a) and (b), with 95 % intervals over seeds (bars of Fig. 4).

    Args:
      cells: cells of one network on one dataset.
    """
    found = {}
    for place in "ab":
        rows = _rows("figure4_errors", cells, placement=f"Dropout-({place})")
        theirs = {row["drop"]: row["error_pct"] for row in rows}
        curves = placements.series(cells).get(place, {})
        ours = {noise[1]: list(cell.values("accuracy").values()) for noise, cell in _dropout(curves).items()}
        errors = {drop: [100 - value for value in values] for drop, values in ours.items() if values}
        if errors.keys() & theirs.keys() - {0}:
            found[place] = (errors, theirs)
    if not found:
        return None
    figure, grid = plots.panels(len(found), sharey=True)
    for axes, (place, (errors, theirs)) in zip(grid, found.items(), strict=True):
        plots.style(axes, "drop probability", "test error, %" if axes is grid[0] else "")
        axes.grid(axis="x", visible=False)
        axes.set_title(_PLACES[place], loc="left", fontsize="medium")
        axes.set_xticks(sorted(errors.keys() | theirs.keys()))
        intervals = [estimates.interval(values) for values in errors.values()]
        plots.bars(axes, errors, intervals, 0.055, color=plots.COLORS[0])
        axes.plot(list(theirs), list(theirs.values()), **plots.PAPER)
    return plots.finish(figure, _title(figure, cells), {"ours": plots.COLORS[0], _PAPER: plots.PAPER})


def weights(cells: list[Cell]) -> Figure | None:
    """cos^2 theta by layer and d cos^2 theta by d of the convolutions, without noise (Fig. 3).

    theta is the angle between a filter and (1, ..., 1), and d is the number of its weights. Values are means
    over the filters of a layer, and over the layers with the same d. Layers are drawn at their relative
    depth, because networks differ in their number.

    Args:
      cells: cells of one network on one dataset.
    """
    plain = placements.without_noise(cells)
    runs = [rows for member in (plain.members if plain else ()) if (rows := _convolutions(member))]
    if not (plain and runs and placements.li2018(plain.config)):
        return None
    figure, (left, right) = plots.panels(2)
    plots.style(left, "relative depth of the convolution", r"$\cos^2\theta$")
    plots.style(right, "weights of a filter, $d$", r"$d\,\cos^2\theta$")
    pale: dict = {"linestyle": "", "marker": "D", "markersize": 3, "color": "0.6", "gid": "paper"}
    for axes, panel in ((left, "cos2 by layer"), (right, "d cos2 by d")):
        rows = _rows("figure3", cells, panel=panel)
        scale = rows[-1]["x"] if axes is left else 1
        axes.plot([row["x"] / scale for row in rows], [row["y"] for row in rows], **pale)
    look = {"color": plots.COLORS[0], "marker": "o", "markersize": 4}
    by_layer = [[row["cos2"] for row in rows] for rows in runs]
    plots.band(left, np.linspace(0, 1, len(runs[0])), by_layer, **look)
    sizes = sorted({row["fan_in"] for row in runs[0]})
    plots.band(right, sizes, [_by_size(rows, sizes) for rows in runs], **look)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    return plots.finish(figure, _title(figure, cells), {"ours": plots.COLORS[0], _PAPER: pale})


def training_curves(cells: list[Cell]) -> Figure | None:
    """Training accuracy in train and test mode, without dropout and with 0.5 in (a) (Fig. 5).

    The paper's curves stand beside ours. The axis begins at the lowest value after a fifth of the training,
    as the paper's does.

    Args:
      cells: cells of one network on one dataset.
    """
    curves = placements.series(cells).get("a", {})
    colors = {placements.NONE: _PLAIN, ("dropout", 0.5): plots.COLORS[1]}
    if ("dropout", 0.5) not in curves:
        return None
    theirs = _rows("figure5", cells)
    figure, grid = plots.panels(2 if theirs else 1, sharey=True)
    for axes, title in zip(grid, ("ours", _PAPER), strict=False):
        plots.style(axes, "epoch / last epoch", "training accuracy, %" if axes is grid[0] else "")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlim(0, 1.02)
    modes = {"train": ("train/accuracy", "-"), "test": ("train/accuracy_test_mode", (0, (4, 2)))}
    for (noise, color), (mode, (key, line)) in itertools.product(colors.items(), modes.items()):
        if noise in curves:
            plots.band(grid[0], *_epochs(curves[noise], key), color=color, linestyle=line)
        if rows := [row for row in theirs if (row["drop"], row["mode"]) == (noise[1], mode)]:
            at = [row["epoch"] / rows[-1]["epoch"] for row in rows]
            heights = [row["train_acc"] for row in rows]
            grid[1].plot(at, heights, color=color, linestyle=line, linewidth=1, gid="paper")
    points = np.concatenate([line.get_xydata() for axes in grid for line in axes.lines])
    grid[0].set_ylim(min((y for x, y in points if x >= 0.2), default=2) - 2, 101)
    looks: dict = {"no dropout": _PLAIN, "dropout 0.5 in (a)": plots.COLORS[1]}
    looks |= {f"{mode} mode": {"color": _PLAIN, "linestyle": line} for mode, (_, line) in modes.items()}
    return plots.finish(figure, _title(figure, cells), looks)


def _title(figure, cells):
    ours, theirs = placements.describe(cells[0].config), placements.describe_li2018(cells[0].config)
    return f"{ours}; {_PAPER}: {theirs}" if plots.holds_papers(figure) else ours


def _rows(figure, cells, **columns):
    """The paper's rows that stand beside the cells."""
    beside = placements.li2018(cells[0].config)
    return papers.rows(f"li2018_{figure}", **beside, **columns) if beside else []


def _dropout(curves):
    """The items of noise -> anything whose noise the paper has too: no noise and dropout."""
    return {noise: value for noise, value in curves.items() if noise[0] in ("", "dropout")}


def _shifts(curves):
    """noise -> (layers, the larger of ratio and inverse by (seed, layer)), for the cells that have BN."""
    found = {}
    for noise, cell in curves.items():
        runs = [member.summary.get("shift_li2018") or member.summary.get("shift") for member in cell.members]
        if runs := [[max(row["ratio"], 1 / row["ratio"]) for row in rows] for rows in runs if rows]:
            found[noise] = (range(len(runs[0])), runs)
    return found


def _paper_shifts(cells, place, curves):
    """The same for the paper's curves of these amounts; {} if it only has the curve without noise."""
    found = {}
    for noise in _dropout(curves):
        if rows := _rows("figure4", cells, placement=f"Dropout-({place})", drop=noise[1]):
            found[noise] = ([row["x"] for row in rows], [[row["shift"] for row in rows]])
    return found if found.keys() - {placements.NONE} else {}


def _place_words(place, curves):
    """The place in words, with Kim et al.'s name in front if the cells use only that name."""
    names = {cell.config["model"]["place"] for cell in curves.values()} - {""}
    words = _PLACES.get(place, place)
    return words if place in names else f"{min(names)}: {words}"


def _convolutions(member):
    """The rows of a member's convolutions in network order; `weight_statistics` has them by name."""

    def order(row):
        section = row["layer"].partition("/")[0]
        numbers = [int(number) for number in re.findall(r"\d+", section)] or [0]
        return numbers[0] + 0.5 * section.startswith("transition"), numbers, row["layer"]

    rows = member.summary.get("weights") or []
    return sorted((row for row in rows if "conv" in row["layer"].rpartition("/")[2]), key=order)


def _by_size(rows, sizes):
    """Mean d cos^2 theta over the layers with the same d."""
    return [np.mean([row["d_cos2"] for row in rows if row["fan_in"] == size]) for size in sizes]


def _epochs(cell, key):
    """(share of the training, % by (seed, epoch)) of a metric, up to the last epoch that all seeds have."""
    runs = [[record for record in member.records if record.get(key) is not None] for member in cell.members]
    number = min(map(len, runs))
    epochs = np.array([record["epoch"] for record in runs[0][:number]])
    return epochs / epochs[-1:], [[100 * record[key] for record in run[:number]] for run in runs]
