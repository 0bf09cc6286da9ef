"""The examples in docstrings do what they show."""

import doctest
import importlib

import pytest

DIAGNOSE = ["gap", "lint.report", "recalibrate", "shift", "surgery", "theory", "uncertainty"]


@pytest.mark.parametrize("name", ["nn.laws", *(f"diagnose.{name}" for name in DIAGNOSE)])
def test_examples(name):
    module = importlib.import_module(f"dropbn.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
