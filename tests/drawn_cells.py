"""Cells to draw, and what a figure's axes show."""

import numpy as np

from configs import small
from dropbn.study import finished_runs
from dropbn.study.finished_runs import Cell


def member(seed=0, accuracy=0.5, ratios=(), weights=(), records=(), **others):
    rows = [{"layer": f"stage1_block{i}/bn1", "ratio": ratio} for i, ratio in enumerate(ratios)]
    summary = {"accuracy": accuracy, "shift": rows, "weights": list(weights), **others}
    return finished_runs.member(seed, list(records), summary)


def records(*accuracies):
    return [
        {"epoch": float(epoch), "train/accuracy": train, "train/accuracy_test_mode": test}
        for epoch, (train, test) in enumerate(accuracies, 1)
    ]


def cell(study, arg, *members, paper=None):
    return Cell(arg, study.get_config(arg).to_dict(), paper, list(members) or [member()])


def digits(words, *members, paper=None):
    return cell(small, f"preresnet8,digits{words}", *members, paper=paper)


def drawn(axes, of_the_paper=False):
    """The data of our lines, or of the paper's, in the order in which they were drawn."""
    return [line.get_xydata() for line in axes.lines if (line.get_gid() == "paper") is of_the_paper]


def curve(axes, number):
    """y of our curve with this number."""
    return drawn(axes)[number][:, 1].tolist()


def bars(axes):
    """x of the middle of a bar -> where the bar ends."""
    return {
        round(patch.get_x() + patch.get_width() / 2, 6): patch.get_y() + patch.get_height()
        for patch in axes.patches
    }


def whiskers(axes):
    """x -> (lower end, upper end)."""
    segments = [
        s for lines in axes.collections if hasattr(lines, "get_segments") for s in lines.get_segments()
    ]
    return {round(s[0][0], 6): (s[0][1], s[1][1]) for s in segments if len(s) == 2 and np.isfinite(s).all()}


def markers(axes):
    """x -> y of the paper's values."""
    return {round(x, 6): y for data in drawn(axes, True) for x, y in data}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]
