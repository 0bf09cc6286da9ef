"""Figures as pure functions of numbers: each returns a matplotlib Figure, and writes it if given a path.

A path that cannot be written raises a DropbnError.
"""

import io
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dropbn import writers
from dropbn.errors import extra

with extra("plot"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vXP"
# How a paper's value is drawn beside ours.
PAPER: dict = {"linestyle": "", "marker": "D", "color": "black", "markerfacecolor": "white", "gid": "paper"}


def style(axes: Axes, xlabel: str = "", ylabel: str = "") -> Axes:
    """Gives the axes their labels and the style of all figures; returns them."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def panels(number: int, columns: int = 2, width: float = 4.2, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure with several panels, and the list of its panels, row by row.

    Args:
      number: how many panels.
      columns: the most panels in a row.
      width: the width of a panel in inches.
      **kwargs: further arguments of `Figure.subplots`.
    """
    columns = min(number, columns)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns, 1.0 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **kwargs).flat
    for axes in grid[number:]:
        axes.remove()
    return figure, list(grid[:number])


def single(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure with one panel, and its axes."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, style(figure.add_subplot(), xlabel, ylabel)


def finish_single(figure: Figure, path: str | os.PathLike | None = None, **legend: Any) -> Figure:
    """The figure of `single` with its legend, written to `path` if given."""
    figure.axes[0].legend(frameon=False, **legend)
    return _written(figure, path)


def svg(figure: Figure) -> bytes:
    """A figure as SVG; equal figures give equal bytes."""
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dropbn"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def band(axes: Axes, at: ArrayLike, runs: ArrayLike, **look: Any) -> None:
    """Draws the mean of several runs as a line, within a band from the smallest to the largest.

    Args:
      axes: where to draw.
      at: x of every point.
      runs: (runs, points).
      **look: properties of the line.
    """
    runs = np.asarray(runs, np.float64)
    axes.fill_between(at, runs.min(0), runs.max(0), color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(at, runs.mean(0), **{"linewidth": 1.6} | look)


def bars(
    axes: Axes,
    at: Collection[float],
    intervals: Sequence[tuple[float, float | None]],
    width: float,
    bottom: float = 0,
    **look: Any,
) -> None:
    """Draws means as bars, with their intervals as whiskers.

    Args:
      axes: where to draw.
      at: x of the middle of every bar.
      intervals: (mean, half width or None) for every bar.
      width: the width of a bar.
      bottom: where the bars begin.
      **look: properties of the bars.
    """
    means = np.array([mean for mean, _ in intervals])
    halves = np.array([np.nan if half is None else half for _, half in intervals])
    axes.bar(list(at), means - bottom, width, bottom, **look)
    axes.errorbar(list(at), means, halves, fmt="none", ecolor="black", elinewidth=1, capsize=3, zorder=4)


def stretch(axes: Axes) -> None:
    """Makes a y axis of ratios logarithmic if it reaches beyond 10, where one ratio hides the others."""
    if axes.get_ylim()[1] > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def finish(figure: Figure, title: str, looks: dict) -> Figure:
    """The figure of `panels`, with its title above and its legend below the panels.

    Args:
      figure: a figure of `panels`.
      title: the line above; one that is too wide is broken where a semicolon stands.
      looks: label -> a color, or the properties of a line; a label with the gid "paper" appears only if the
        figure holds such a line.
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
    if 0.08 * len(title) > figure.get_figwidth():  # inches of a character
        title = title.replace("; ", "\n")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def holds_papers(figure: Figure) -> bool:
    """Whether the figure shows a paper's values: a line or marker with the gid "paper"."""
    lines = [line for axes in figure.axes for line in axes.lines if line.get_gid() == "paper"]
    return any(np.isfinite(np.asarray(line.get_ydata(), np.float64)).any() for line in lines)


def shift(curves: dict[str, list[dict]], path: str | os.PathLike | None = None) -> Figure:
    """max(ratio, 1 / ratio) against BN layer index, a curve per label (Li et al. 2018, Fig. 4).

    Args:
      curves: label -> the rows of a `dropbn.diagnose.shift.Shift`.
      path: the file to write; its ending says which type.
    """
    figure, axes = single("BN layer index", "shift ratio  max(r, 1/r)")
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
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Real against remembered variance of every BN layer", loc="left")
    return finish_single(figure, path)


def uncertainty(rows: list[dict], path: str | os.PathLike | None = None) -> Figure:
    """Mutual information against entropy of Monte Carlo predictions, with a point for each image.

    Args:
      rows: the rows of a `dropbn.diagnose.uncertainty.Sample`.
      path: the file to write; its ending says which type.
    """
    figure, axes = single("entropy of the mean prediction, nats", "mutual information, nats")
    entropies = [row["entropy"] for row in rows]
    information = [row["mutual_information"] for row in rows]
    axes.plot(entropies, information, ".", color=COLORS[0], alpha=0.5, label="an image")
    limit = max([*entropies, 1e-6])
    axes.plot([0, limit], [0, limit], color="0.6", linewidth=1, label="all of it disagreement of the draws")
    axes.set_title("What the predictions are unsure of, and what the draws disagree about", loc="left")
    return finish_single(figure, path)


def flips(
    images: np.ndarray, responses: np.ndarray, rows: list[dict], path: str | os.PathLike | None = None
) -> Figure:
    """Images that are right in train mode and wrong in test mode, with their responses (Li et al., Fig. 6).

    Args:
      images: (flips, height, width, 1 or 3); images of another shape are not shown.
      responses: (flips, 2, outputs), in train mode and in test mode.
      rows: the rows of `Gap.flips`, for the images' numbers.
      path: the file to write; its ending says which type.
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
        axes.locator_params(axis="x", integer=True)
    if number:
        axes.set_xlabel("output (the marker: the largest)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return _written(figure, path)


def write(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure; the ending of `path` says which type, and without one it is a PNG.

    Raises:
      DropbnError: it cannot be written.
    """
    with writers.replacing(path) as file:
        figure.savefig(file, format=pathlib.Path(path).suffix[1:] or "png", dpi=150)


def _written(figure, path):
    if path is not None:
        write(figure, path)
    return figure
