"""--help of every command: usage, what it does, its flags, and exit status 0."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = {
    "dropbn lint": "--num_steps: ",
    "dropbn examine": "--repair: ",
    "dropbn study": "--seeds: How many members each cell has, with seeds from 0. (default: 5)",
    "dropbn report": "--output: ",
    "dropbn prepare": "usage: dropbn prepare NAME [DIR]",
    "dropbn module-studies": "--figure: <1|3>: ",
    "train.py": "--checkpoint_dir: ",
    "eval.py": "--mc_samples: ",
}


@pytest.mark.parametrize(("command", "line"), COMMANDS.items())
def test_help_says_how_a_command_is_used(command, line):
    words = command.replace("dropbn", "-m dropbn").split()
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"usage: {command} ") and line in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
    assert ("--distributed: " in done.stdout) == (command in ("dropbn study", "train.py", "eval.py"))
    assert "helpfull" not in done.stdout and "\n\n\n" not in done.stdout
