"""Figures. Pure functions of numbers; each returns a matplotlib Figure and writes it if given a path."""

from matplotlib.figure import Figure

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vXP"


def shift(curves: dict[str, list[dict]], path=None) -> Figure:
    """max(ratio, 1 / ratio) against BN layer index, a curve per label (Li et al. 2018, Fig. 4).

    Args:
      curves: label -> rows of a `dropbn.shift.Shift`.
      path: file to write, its type by its ending.
    """
    figure, axes = _axes("BN layer index", "shift ratio  max(r, 1/r)")
    for i, (label, rows) in enumerate(curves.items()):
        heights = [max(row["ratio"], 1 / row["ratio"]) for row in rows]
        axes.plot(
            range(len(heights)),
            heights,
            marker=_MARKERS[i % len(_MARKERS)],
            color=_COLORS[i % len(_COLORS)],
            label=label,
        )
    axes.axhline(1, color="0.6", linewidth=1, zorder=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Real against remembered variance of every BN layer", loc="left")
    return _finish(figure, axes, path)


def _axes(xlabel, ylabel):
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure, axes, path):
    axes.legend(frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
