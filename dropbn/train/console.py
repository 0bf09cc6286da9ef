"""What a run and its evaluation print on the console."""

import os
import shlex

import rich.console

from dropbn.diagnose.shift import Shift
from dropbn.train.evaluation import Evaluation


def print_run(
    records: list[dict], shift: Shift, workdir: str | os.PathLike, console: rich.console.Console | None = None
) -> None:
    """The closing summary of a training run: final numbers, most shifted layers, what to run next."""
    console = console or rich.console.Console(highlight=False, markup=False)
    final = records[-1]
    validated = "validation/accuracy" in final
    chosen_by, label = (
        ("validation/accuracy", "at best validation") if validated else ("test/accuracy", "best")
    )
    best = max(records, key=lambda record: record[chosen_by])["test/accuracy"]
    console.print(f"\nAfter {final['epoch']:.4g} epochs ({final['step']} steps):")
    console.print(
        f"  test accuracy                       {final['test/accuracy']:.2%}   ({label} {best:.2%})"
    )
    console.print(f"  training accuracy, in train mode    {final['train/accuracy']:.2%}")
    console.print(f"  the same, test mode, plain images   {final['train/accuracy_test_mode']:.2%}")
    if shift.rows:
        console.print("Most shifted BN layers, by real / moving variance (1 is no shift):")
    for row in shift.most_shifted(3):
        console.print(f"  {row['layer']:<35} {row['ratio']:.3f}")
    command = evaluation_command(workdir)
    console.print(f"Results are in {workdir}. Look closer:\n  {command}\n", soft_wrap=True)


def print_evaluation(
    found: Evaluation, workdir: str | os.PathLike, console: rich.console.Console | None = None
) -> None:
    """The tables of an evaluation."""
    console = console or rich.console.Console(highlight=False, markup=False)
    console.print(f"\n{workdir}, checkpoint of step {found.checkpoint_step}\n")
    console.print(found.gap)
    console.print()
    for table in (found.recalibrated, found.sampled):
        if table:
            console.print(table)
    console.print(found.shift)
    if found.shift.rows:
        pooled, li2018 = (
            min(row["ratio"] for row in shift.rows) for shift in (found.shift, found.shift_li2018)
        )
        console.print(
            f"Lowest ratio {pooled:.3f} (pooled), {li2018:.3f} by the estimator of Li et al. 2018. Variances "
            "are biased (1/m), as Flax keeps them."
        )


def evaluation_command(workdir: str | os.PathLike) -> str:
    """The command that evaluates the run in a workdir."""
    return f"python eval.py --workdir={shlex.quote(str(workdir))}"
