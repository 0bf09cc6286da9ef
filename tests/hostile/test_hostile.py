"""Every case ends in a sentence, or is accepted rightly."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_nothing_ends_in_a_traceback_a_hang_or_a_hole():
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile"],
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:]
