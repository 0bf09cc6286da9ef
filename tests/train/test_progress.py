"""What a run shows: the bar on a terminal, lines elsewhere."""

import io
import re

import jax
import numpy as np
import pytest
import rich.console

from dropbn.train import parallel, progress

RECORD = {
    "step": 20,
    "epoch": 2.0,
    "train/loss": 0.25,
    "train/accuracy": 0.9,
    "train/accuracy_test_mode": 0.85,
    "test/loss": 0.5,
    "test/accuracy": 0.8,
    "images_per_second": 12345.6,
}


def _sums(loss, correct):
    sums = {"loss": np.float32(loss), "correct": np.int32(correct), "count": np.int32(10)}
    return parallel.replicate(sums, jax.devices()[:2])


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_and_lines(terminal, monkeypatch):
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    written = io.StringIO()
    console = rich.console.Console(file=written, force_terminal=terminal, width=110, markup=False)
    with progress.Progress("[bn relu conv] on digits", 40, 10, console) as shown:
        shown.resume(10)
        sums = []
        for loss in (30.0, 20.0, 10.0, 5.0):
            sums.append(_sums(loss, 7))
            shown.step(sums)
        task = shown._bar.tasks[0]
        shown.epoch(RECORD)
    assert task.completed == 14 and task.total == 40
    if terminal:
        # Two steps are still under way; the others' last has loss 20 / 10 and came 1.5 s after the first.
        assert task.fields["status"] == "loss 2.000  accuracy 70.0%  7 images/s"
    else:
        assert task.fields["status"] == "compiling"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    assert "[bn relu conv] on digits" in plain
    line = next(line for line in plain.splitlines() if "epoch " in line)
    for part in (
        "    2 ",
        "loss 0.2500",
        "train 90.00%",
        "in test mode 85.00%",
        "test 80.00%",
        "12,346 images/s",
    ):
        assert part in line
