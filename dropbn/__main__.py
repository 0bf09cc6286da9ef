"""The console script: `dropbn COMMAND ...`, or `python -m dropbn COMMAND ...`."""

import importlib
import sys

from dropbn import starting
from dropbn.errors import DropbnError, unknown

# command -> (the module whose `run` it calls, what it does).
COMMANDS = {
    "lint": ("dropbn.diagnose.lint.command", "check a model's noise and batch normalization before training"),
    "study": ("dropbn.study.command", "train every cell of a paper's table with several seeds"),
    "examine": ("dropbn.page.examine", "say what is wrong with a trained model, and what helps"),
    "report": ("dropbn.page.command", "make one HTML page of a run or a study"),
    "prepare": ("dropbn.data.prepare", "download and prepare a dataset"),
    "module-studies": ("dropbn.study.module_studies", "measure the module tests of Kim et al. (2023)"),
}


def main() -> None:
    """Runs the command that the first argument names. The command parses the other arguments."""
    starting.guard()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print("usage: dropbn COMMAND ...\n")
        for command, (_, purpose) in COMMANDS.items():
            print(f"  {command:<15} {purpose}")
        print("\ndropbn COMMAND --help shows its usage and flags. train.py trains, eval.py evaluates a run.")
        return
    if name not in COMMANDS:
        print(f"error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"dropbn {name}", *arguments]
    try:
        run = importlib.import_module(COMMANDS[name][0]).run
    except DropbnError as error:  # an extra that is not installed
        sys.exit(f"error: {error}")
    run()


if __name__ == "__main__":
    main()
