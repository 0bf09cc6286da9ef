"""Figures. Pure functions of numbers; each returns a matplotlib Figure and writes it if given a path."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vXP"
# How the value of a paper is drawn beside ours.
PAPER = {"linestyle": "", "marker": "D", "color": "black", "markerfacecolor": "white", "gid": "paper"}


def style(axes, xlabel: str = "", ylabel: str = ""):
    """The axes, with their labels and in the style of all figures."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def panels(number: int, columns: int = 2, width: float = 4.2, **kwargs) -> tuple[Figure, list]:
    """A figure of several panels and the list of them, row by row.

    Args:
      number: of panels.
      columns: panels in a row, at most.
      width: of a panel, inches.
      **kwargs: of `Figure.subplots`.
    """
    columns = min(number, columns)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns, 1.0 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **kwargs).flat
    for axes in grid[number:]:
        axes.remove()
    return figure, list(grid[:number])


def band(axes, at, runs, **look) -> None:
    """The mean of several runs as a line, within a band from the least to the largest.

    Args:
      axes: where to draw.
      at: x of every point.
      runs: (runs, points).
      **look: of the line.
    """
    runs = np.asarray(runs, np.float64)
    axes.fill_between(at, runs.min(0), runs.max(0), color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(at, runs.mean(0), **{"linewidth": 1.6} | look)


def bars(axes, at, intervals, width: float, bottom: float = 0, **look) -> None:
    """Means as bars with the whiskers of their intervals.

    Args:
      axes: where to draw.
      at: x of the middle of every bar.
      intervals: (mean, half width or None) of every bar.
      width: of a bar.
      bottom: where bars begin.
      **look: of the bars.
    """
    means = np.array([mean for mean, _ in intervals])
    halves = np.array([np.nan if half is None else half for _, half in intervals])
    axes.bar(list(at), means - bottom, width, bottom, **look)
    axes.errorbar(list(at), means, halves, fmt="none", ecolor="black", elinewidth=1, capsize=3, zorder=4)


def stretch(axes) -> None:
    """Makes a y axis of ratios logarithmic if it reaches beyond 10, where one would hide the others."""
    if axes.get_ylim()[1] > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def finish(figure: Figure, title: str, looks: dict) -> Figure:
    """The figure, with its title above and its legend below the panels.

    Args:
      figure: of `panels`.
      title: the line above.
      looks: label -> a color, or the properties of a line; one of gid "paper" only if there is such a line.
    """
    looks = {
        label: look if isinstance(look, dict) else {"color": look, "linewidth": 5}
        for label, look in looks.items()
    }
    handles = [
        Line2D([], [], **look, label=label)
        for label, look in looks.items()
        if look.get("gid") != "paper" or holds_papers(figure)
    ]
    widest = 0.6 + 0.075 * max(map(len, looks))  # inches of a legend's column
    rows = -(-len(handles) // max(1, int(figure.get_figwidth() // widest)))
    columns = -(-len(handles) // rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def holds_papers(figure: Figure) -> bool:
    """Whether a line or a marker of the figure is a paper's, by its gid."""
    lines = [line for axes in figure.axes for line in axes.lines if line.get_gid() == "paper"]
    return any(np.isfinite(np.asarray(line.get_ydata(), np.float64)).any() for line in lines)


def shift(curves: dict[str, list[dict]], path=None) -> Figure:
    """max(ratio, 1 / ratio) against BN layer index, a curve per label (Li et al. 2018, Fig. 4).

    Args:
      curves: label -> rows of a `dropbn.diagnose.shift.Shift`.
      path: file to write, its type by its ending.
    """
    figure, axes = _axes("BN layer index", "shift ratio  max(r, 1/r)")
    for i, (label, rows) in enumerate(curves.items()):
        heights = [max(row["ratio"], 1 / row["ratio"]) for row in rows]
        axes.plot(
            range(len(heights)),
            heights,
            marker=_MARKERS[i % len(_MARKERS)],
            color=COLORS[i % len(COLORS)],
            label=label,
        )
    axes.axhline(1, color="0.6", linewidth=1, zorder=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Real against remembered variance of every BN layer", loc="left")
    return _finish(figure, axes, path)


def uncertainty(rows: list[dict], path=None) -> Figure:
    """Mutual information against entropy of Monte Carlo predictions, a point for each image.

    Args:
      rows: of a `dropbn.diagnose.uncertainty.Sample`.
      path: file to write.
    """
    figure, axes = _axes("entropy of the mean prediction, nats", "mutual information, nats")
    entropies = [row["entropy"] for row in rows]
    information = [row["mutual_information"] for row in rows]
    axes.plot(entropies, information, ".", color=COLORS[0], alpha=0.5, label="an image")
    limit = max([*entropies, 1e-6])
    axes.plot([0, limit], [0, limit], color="0.6", linewidth=1, label="all of it disagreement of the draws")
    axes.set_title("What the predictions are unsure of, and what the draws disagree about", loc="left")
    return _finish(figure, axes, path)


def flips(images, responses, rows: list[dict], path=None) -> Figure:
    """Images that are right in train mode and wrong in test mode, with their responses (Li et al., Fig. 6).

    Args:
      images: (flips, height, width, 1 or 3); of another shape they are not shown.
      responses: (flips, 2, outputs), in train mode and in test mode.
      rows: of `Gap.flips`, for the images' numbers.
      path: file to write.
    """
    number = len(responses)
    figure = Figure(figsize=(7, 1.0 + 1.25 * max(number, 1)), layout="constrained")
    figure.suptitle(
        "Right in train mode, wrong in test mode" if number else "No image is right in train mode only",
        x=0.02,
        ha="left",
    )
    shows = np.ndim(images) == 4 and np.shape(images)[-1] in (1, 3)
    for i, (response, row) in enumerate(zip(responses, rows, strict=False)):
        if shows:
            image = images[i] - images[i].min()
            axes = figure.add_subplot(number, 5, 5 * i + 1)
            axes.imshow(image / max(image.max(), 1e-9), cmap="gray")
            axes.set_axis_off()
        axes = figure.add_subplot(number, 5, (5 * i + 2, 5 * i + 5) if shows else (5 * i + 1, 5 * i + 5))
        for k, label in enumerate(("train mode", "test mode")):
            places = np.arange(len(response[k])) + 0.4 * k - 0.2
            axes.bar(places, response[k], 0.4, color=COLORS[k], label=label)
            best = int(np.argmax(response[k]))
            axes.plot(places[best], response[k][best], "v", color="black", markersize=5)
        axes.axhline(0, color="0.6", linewidth=1)
        axes.set_ylabel(f"image {row['image']}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if number:
        axes.set_xlabel("output (the marker: the largest)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _axes(xlabel, ylabel):
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, style(figure.add_subplot(), xlabel, ylabel)


def _finish(figure, axes, path, **legend):
    axes.legend(frameon=False, **legend)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def predropout(rows: list[dict], path=None) -> Figure:
    """Noise before and after a weight layer by the mean of its weights (Kim et al. 2023, Fig. 1).

    Args:
      rows: of `dropbn.study.module_studies.figure1`.
      path: file to write, its type by its ending.
    """
    figure, axes = _axes("mean of the weights", "ratio of variances, test / train")
    names = {"predropout": "before the weights", "postdropout": "after the weights"}
    _beside_closed_forms(axes, rows, "width", "w_mean", names)
    axes.locator_params(axis="x", nbins=5)
    axes.set_title("Dropout before and after a weight layer", loc="left")
    return _finish(figure, axes, path, **_ASIDE)


def residual(rows: list[dict], path=None) -> Figure:
    """A residual branch and its block by the deviation of the input (Kim et al. 2023, Fig. 3).

    Args:
      rows: of `dropbn.study.module_studies.figure3`.
      path: file to write, its type by its ending.
    """
    figure, axes = _axes("standard deviation of $x_0$", "ratio of variances, test / train")
    names = {"residual": "block $x_0 + f(x_0)$", "branch": "branch $f(x_0)$"}
    _beside_closed_forms(axes, rows, "keep", "std", names)
    axes.set_xscale("log")
    ticks = (0.2, 0.5, 1, 2, 5)
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.set_title("Dropout in a residual branch", loc="left")
    return _finish(figure, axes, path, **_ASIDE)


_ASIDE = {
    "loc": "upper left",
    "bbox_to_anchor": (1, 1),
    "title": "points: measured\nlines: closed form",
    "alignment": "left",
}


def _beside_closed_forms(axes, rows, group, x, names):
    """Points of two quantities and lines of their closed forms, a color for each value of `group`.

    `names`: quantity -> its words in the legend; the first is filled and solid, the second open and dashed.
    """
    styles = list(zip(names, ("-", "--"), (None, "white"), strict=True))
    for i, value in enumerate(dict.fromkeys(row[group] for row in rows)):
        color = COLORS[i % len(COLORS)]
        members = [row for row in rows if row[group] == value]
        at = [row[x] for row in members]
        size = min(4.5, 200 / len(at))
        axes.plot([], [], color=color, linewidth=4, label=f"{group} {value}")
        for name, line, face in styles:
            axes.plot(at, [row[f"{name}_expected"] for row in members], line, color=color, linewidth=1)
            found = [row[name] for row in members]
            axes.plot(at, found, "o", color=color, markersize=size, markerfacecolor=face or color)
    for name, line, face in styles:
        axes.plot([], [], f"o{line}", color="0.3", markerfacecolor=face or "0.3", label=names[name])
