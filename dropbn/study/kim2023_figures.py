"""Figures 1 and 3 of Kim et al. 2023, from the rows of `module_studies`: points measured, lines expected."""

import os

from matplotlib.figure import Figure

from dropbn import plots


def predropout(rows: list[dict], path: str | os.PathLike | None = None) -> Figure:
    """Noise before and after a weight layer by the mean of its weights (Fig. 1).

    Args:
      rows: the rows of `module_studies.figure1`.
      path: the file to write; its ending says which type.
    """
    figure, axes = plots.single("mean of the weights", "ratio of variances, test / train")
    names = {"predropout": "before the weights", "postdropout": "after the weights"}
    _beside_closed_forms(axes, rows, "width", "w_mean", names)
    axes.locator_params(axis="x", nbins=5)
    axes.set_title("Dropout before and after a weight layer", loc="left")
    return plots.finish_single(figure, path, **_LEGEND)


def residual(rows: list[dict], path: str | os.PathLike | None = None) -> Figure:
    """A residual branch and its block by the standard deviation of the input (Fig. 3).

    Args:
      rows: the rows of `module_studies.figure3`.
      path: the file to write; its ending says which type.
    """
    figure, axes = plots.single("standard deviation of $x_0$", "ratio of variances, test / train")
    names = {"residual": "block $x_0 + f(x_0)$", "branch": "branch $f(x_0)$"}
    _beside_closed_forms(axes, rows, "keep", "std", names)
    axes.set_xscale("log")
    ticks = (0.2, 0.5, 1, 2, 5)
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.set_title("Dropout in a residual branch", loc="left")
    return plots.finish_single(figure, path, **_LEGEND)


_LEGEND = {
    "loc": "upper left",
    "bbox_to_anchor": (1, 1),
    "title": "points: measured\nlines: closed form",
    "alignment": "left",
}


def _beside_closed_forms(axes, rows, group, x, names):
    """Draws two quantities as points and their closed forms as lines, in one color for each value of `group`.

    `names`: quantity -> its words in the legend; the first is filled and solid, the second open and dashed.
    """
    styles = list(zip(names, ("-", "--"), (None, "white"), strict=True))
    for i, value in enumerate(dict.fromkeys(row[group] for row in rows)):
        color = plots.COLORS[i % len(plots.COLORS)]
        of_value = [row for row in rows if row[group] == value]
        at = [row[x] for row in of_value]
        size = min(4.5, 200 / len(at))
        axes.plot([], [], color=color, linewidth=4, label=f"{group} {value}")
        for name, line, face in styles:
            axes.plot(at, [row[f"{name}_expected"] for row in of_value], line, color=color, linewidth=1)
            found = [row[name] for row in of_value]
            axes.plot(at, found, "o", color=color, markersize=size, markerfacecolor=face or color)
    for name, line, face in styles:
        axes.plot([], [], f"o{line}", color="0.3", markerfacecolor=face or "0.3", label=names[name])
