"""Evaluates trained runs: python eval.py --workdir=W [--workdir=V ...] [--checkpoint=latest|best|STEP]

--recalibrate=RECIPE shows what new BN statistics bring, --mc_samples=T what dropout kept on at prediction
does.
"""

import pathlib

from absl import flags

from dropbn import doorway

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "A run of train.py; several overlay their curves.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_RECALIBRATE = flags.DEFINE_string(
    "recalibrate",
    "",
    "dropout_off, li2018, hendrycks2016, precise_bn or closed_form; see dropbn/recalibrate.py.",
)
_SAMPLES = flags.DEFINE_integer("mc_samples", 0, "Draws of Monte Carlo dropout.", lower_bound=0)
flags.mark_flag_as_required("workdir")


def main():
    from dropbn import evaluation, plots, report

    curves = {}
    for workdir in _WORKDIRS.value:
        found = evaluation.evaluate(workdir, _CHECKPOINT.value, _RECALIBRATE.value, _SAMPLES.value)
        report.print_evaluation(found, workdir)
        print(f"Written to {workdir}/eval: report.json, shift.csv, shift.png, flips.png")
        curves[workdir] = found.shift.rows
    if len(curves) > 1:
        overlay = pathlib.Path(_WORKDIRS.value[0], "eval", "shift_overlay.png")
        plots.shift(curves, overlay)
        print(f"All curves in one figure: {overlay}")


if __name__ == "__main__":
    doorway.run(main)
