"""What a tool was given and cannot use: one sentence that says what it was and what is wanted."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from dropbn.diagnose import gap, given, lint, modes, recalibrate, shift, uncertainty
from dropbn.errors import DropbnError


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.5)(nn.Dense(4)(x), deterministic=not train)
        x = nn.BatchNorm()(x, use_running_average=not train)
        return nn.Dense(2)(x)


X, Y = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2
VARIABLES = Net().init(jax.random.key(1), X, train=False)
TOOLS = {
    "measure": shift.measure,
    "predict": shift.predict,
    "recalibrate": recalibrate.recalibrate,
    "explain": lambda model, variables, batches, **call: gap.explain(
        model, variables, batches, batches, **call
    ),
    "sample": uncertainty.sample,
}
OBJECTS = np.array([object()] * 8)
BATCHES = {
    "empty": (X[:0], "shape (0, 3), with no example"),
    "a list": ([1.0, 2.0, 3.0], "are 1.0: give an array"),
    "lists": ([[1.0, 2, 3]], "are [1.0, 2, 3]: give an array"),
    "a string": ("abc", "hold 'abc', not numbers"),
    "strings": (np.array(["a"] * 8), "an array of <U1, not numbers"),
    "objects": (OBJECTS, "an array of object, not numbers"),
    "a number": (5, "are 5: give an array"),
    "nothing": ((), "a tuple of 0: give (inputs, labels)"),
    "long": ("x y" * 5000, "hold 'x yx yx"),
}
CALLS = {
    "inputs": ({"inputs": 5}, "inputs=5 is no part of a batch"),
    "rngs": ({"rngs": 0}, "rngs=0: give a dict"),
    "no key": ({"rngs": {"dropout": 0}}, "rngs: 'dropout' is 0: give a random key"),
    "text for a key": ({"rngs": {"dropout": "a"}}, "'dropout' is 'a': give a random key"),
    "no stream": ({"rngs": {0: jax.random.key(0)}}, "rngs: 0 is Array"),
    "several keys": ({"rngs": {"dropout": jax.random.split(jax.random.key(0))}}, "give a random key"),
    "method": ({"method": 5}, "method=5: give a name or a function"),
    "args": ({"args": 5}, "args=5: give a tuple"),
    "long": ({"inputs": "z" * 5000}, "is no part of a batch"),
}


def _said(message, call):
    with pytest.raises(DropbnError) as error:
        call()
    assert message in str(error.value) and len(str(error.value)) < 700, error.value


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_what_no_tool_can_use_is_said_with_what_is_wanted(tool):
    for batch, message in BATCHES.values():
        _said(message, lambda batch=batch: tool(Net(), VARIABLES, [batch]))
    for call, message in CALLS.values():
        _said(message, lambda call=call: tool(Net(), VARIABLES, [(X, Y)], **call))
    for variables in (None, [1], "x", 5):
        _said("give what init() returns", lambda variables=variables: tool(Net(), variables, [(X, Y)]))
    for model in (Net, (Net, Net)):
        _said(
            "The model is the class Net: give an instance",
            lambda model=model: tool(model, VARIABLES, [(X, Y)]),
        )
    for batches in (None, 5, "abc", X):
        _said("Expected an iterable of batches", lambda batches=batches: tool(Net(), VARIABLES, batches))


def test_modes_and_lint_say_it_too():
    for mode in ("train", None, 5, modes.Mode):
        _said("is no Mode: give modes.TRAIN", lambda mode=mode: modes.apply(Net(), VARIABLES, X, mode=mode))
    for x, message in ((X[:0], "with no example"), ([[1, 2, 3]], "give an array"), ("abc", "not numbers")):
        _said(message, lambda x=x: modes.apply(Net(), VARIABLES, x, mode=modes.TEST))
        _said(message, lambda x=x: lint.check(Net(), x))
    _said("The model is the class Net", lambda: lint.check(Net, X))


@pytest.mark.parametrize("change", [lambda s: s * np.nan, lambda s: s - 5, lambda s: s + np.inf])
def test_running_statistics_that_no_training_leaves_are_refused(change):
    broken = {**VARIABLES, "batch_stats": jax.tree.map(change, VARIABLES["batch_stats"])}
    _said("running statistics of 'BatchNorm_0' are not finite", lambda: shift.measure(Net(), broken, [X]))
    closed = lambda: recalibrate.recalibrate(Net(), broken, [X], "closed_form")  # noqa: E731
    _said("running statistics of 'BatchNorm_0' are not finite", closed)
    repaired = recalibrate.recalibrate(Net(), broken, [X]).batch_stats  # which is the remedy
    right = recalibrate.recalibrate(Net(), VARIABLES, [X]).batch_stats
    jax.tree.map(np.testing.assert_allclose, repaired, right)


def test_numbers_of_times_and_complex_numbers():
    for wrong in ("x", 0, 1.5, None, True):
        for call in (
            lambda wrong=wrong: uncertainty.sample(Net(), VARIABLES, [X], num_samples=wrong),
            lambda wrong=wrong: recalibrate.recalibrate(Net(), VARIABLES, [X], passes=wrong or 0),
            lambda wrong=wrong: lint.check(Net(), X, num_steps=wrong or 0),
        ):
            _said(": give a whole number, at least 1", call)
    _said("at 'BatchNorm_0' takes complex numbers", lambda: shift.measure(Net(), VARIABLES, [X * 1j]))


def test_what_can_be_used_is_accepted():
    for x in (X, {"a": X, "scale": 0.5}, (X, X), jax.ShapeDtypeStruct((2, 3), "float32"), [X, X]):
        given.check_inputs(x)
    given.check_rngs({"dropout": jax.random.key(0), "params": jax.random.PRNGKey(0)})
