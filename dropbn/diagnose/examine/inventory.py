"""What a model has of noise and of batch normalization."""

from collections.abc import Mapping

from dropbn.diagnose.layers import Layers
from dropbn.diagnose.noises import Noise
from dropbn.diagnose.tracing import name_of
from dropbn.results import Result

_STATISTICS = {True: "the batch's", False: "running", None: "not called"}
_NOISE = {True: "on", False: "off", None: "not called"}


def of(layers: Layers, variables: Mapping) -> Result:
    """The layers of a model, in the order of a forward pass.

    Each row holds:
      layer: its path; of a random draw that belongs to no layer, where it stands.
      kind: "batch normalization", "noise", "random draw" or "other running state".
      amount: the rate or beta of a noise; None if it is unknown.
      training, test: what it does in each mode: a noise is on or off, and a batch normalization uses the
        batch's statistics or running ones.
      line: the user's line that calls it, such as "net.py:41"; "" if it is not known.
    """
    rows = [
        _row(layers, name_of(path), "batch normalization", _STATISTICS[use.train], _STATISTICS[use.test])
        for path, use in layers.norms.items()
    ]
    for path, use in layers.noises.items():
        amount = use.layer.amount if isinstance(use.layer, Noise) else None
        rows.append(_row(layers, name_of(path), "noise", _NOISE[use.train], _NOISE[use.test], amount))
    rows += [_row(layers, where, "random draw", "on", "off") for where in layers.unswitched]
    rows += [_row(layers, where, "random draw", "on", "on") for where in layers.draws_in_both]
    states = layers.other_state(variables)
    rows += [_row(layers, name, "other running state", "not measured", "not measured") for name in states]
    return Result(rows, "Layers")


def _row(layers, name, kind, training, test, amount=None):
    line = layers.marked[name].line if name in layers.marked else ""
    return {
        "layer": name,
        "kind": kind,
        "amount": amount,
        "training": training,
        "test": test,
        "line": line,
    }
