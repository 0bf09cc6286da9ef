"""Finds what is wrong with the noises and batch normalizations of a Flax model, even before it is trained.

    python -m dropbn lint package.module:build_model --input=2,32,32,3

traces the model, computes nothing, follows every noise to the batch normalizations that it reaches
(`dropbn.diagnose.noise_flow`), and reports what `RULES` find. `check(model, x)` does the same from Python,
also for trained variables, and `assert_no_shift(model, x)` in a test.
"""

from dropbn.diagnose.lint.report import Report, assert_no_shift, check
from dropbn.diagnose.lint.rules import RULES, Facts, Rule

__all__ = ["RULES", "Facts", "Report", "Rule", "assert_no_shift", "check"]
