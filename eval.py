"""Evaluates trained runs: python eval.py --workdir=W [--workdir=V ...] [--checkpoint=latest|best|STEP]

--recalibrate=RECIPE shows what new BN statistics change, --mc_samples=T what Monte Carlo dropout changes.
"""

import pathlib

from dropbn import starting

starting.guard()  # What follows takes seconds to import.

from absl import flags  # noqa: E402

from dropbn import cli, processes  # noqa: E402

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "A run of train.py; several runs share one figure.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
_RECALIBRATE = flags.DEFINE_string(
    "recalibrate",
    "",
    "dropout_off, li2018, li2018_moving, li2018_torch, hendrycks2016, precise_bn, closed_form; "
    "see dropbn/diagnose/recalibrate.py.",
)
_SAMPLES = flags.DEFINE_integer("mc_samples", 0, "Draws of Monte Carlo dropout.", lower_bound=0)
flags.mark_flag_as_required("workdir")
processes.define()


def main():
    from dropbn import plots
    from dropbn.train import console, evaluation, parallel

    workdirs = _WORKDIRS.value
    for workdir in parallel.my_share(workdirs):
        found = evaluation.evaluate(workdir, _CHECKPOINT.value, _RECALIBRATE.value, _SAMPLES.value)
        console.print_evaluation(found, workdir)
        print(f"Written to {workdir}/eval: report.json, shift.csv, shift.png, flips.png")
    parallel.wait_for_all("every run is evaluated")
    if len(workdirs) > 1 and parallel.is_first():
        overlay = pathlib.Path(workdirs[0], "eval", "shift_overlay.png")
        plots.shift({workdir: evaluation.read_report(workdir)["shift"] for workdir in workdirs}, overlay)
        print(f"All curves in one figure: {overlay}")


if __name__ == "__main__":
    cli.run(main)
