"""The examples in docstrings do what they show."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["gap", "lint.report", "modes", "recalibrate", "shift", "surgery", "theory"])
def test_examples(name):
    module = importlib.import_module(f"dropbn.diagnose.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
