"""Evaluates trained runs: python eval.py --workdir=W [--workdir=V ...] [--checkpoint=latest|best|STEP]"""

import pathlib

from absl import flags

from dropbn import doorway

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "A run of train.py; several overlay their curves.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
flags.mark_flag_as_required("workdir")


def main():
    from dropbn import evaluation, plots, report

    curves = {}
    for workdir in _WORKDIRS.value:
        found = evaluation.evaluate(workdir, _CHECKPOINT.value)
        report.print_evaluation(found, workdir)
        print(f"Written to {workdir}/eval: report.json, shift.csv, shift.png")
        curves[workdir] = found.shift.rows
    if len(curves) > 1:
        overlay = pathlib.Path(_WORKDIRS.value[0], "eval", "shift_overlay.png")
        plots.shift(curves, overlay)
        print(f"All curves in one figure: {overlay}")


if __name__ == "__main__":
    doorway.run(main)
