"""What training anew would leave of the shift, predicted from the weights."""

import math
from collections.abc import Callable
from typing import Any

from dropbn.diagnose import shift, surgery
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.layers import Layers
from dropbn.diagnose.noises import Noise
from dropbn.diagnose.shift import Shift
from dropbn.diagnose.tracing import name_of
from dropbn.errors import DropbnError
from dropbn.nn import laws
from dropbn.results import Result

ACCEPTED = 0.95  # A ratio of real / remembered variance that is worth no change.
_FEW = 100  # values per channel, of which the mean variance is 1 % below that of all
_TRIES = 3


def compare(
    model: Any, variables: Any, batches: Batches, layers: Layers, predicted: Shift, **call: Any
) -> Result:
    """The lowest ratio that is predicted after each change that needs training anew.

    A ratio is that of `shift.predict` with these weights, which training anew would change.

    Each row holds:
      change: of the training; the first row is without any.
      ratio: the lowest of all layers; None if it cannot be predicted.
      layer: where it is the lowest.
      note: what the ratio supposes, or why there is none.

    Args:
      model, variables, **call: see `dropbn.diagnose.shift.predict`.
      batches: as large as those of training.
      layers: of the model.
      predicted: its shift.
    """
    now = _row("none", predicted)
    rows = [now]

    def predict(changed: Any) -> Shift:
        return shift.predict(changed, variables, batches, **call)

    def add(change: str, row: Callable[[], dict | None]) -> None:
        try:
            rows.extend(filter(None, [row()]))
        except DropbnError as error:
            rows.append(_cells(change, None, "", str(error)))

    if now["ratio"] < ACCEPTED and layers.switched_noises:
        add(_MOVED, lambda: _moved(model, variables, batches, predict, call))
        add("weaker noise", lambda: _weakened(model, layers, now["ratio"], predict))
    sizes = {name_of(path): use.values for path, use in layers.norms.items() if use.train}
    if min(sizes.values(), default=math.inf) < _FEW:
        rows.append(_row("batches of twice as many images", _in_twice_the_batch(predicted, sizes), _TWICE))
    shared = (name for name, _, call in (row["layer"].partition("[call ") for row in predicted.rows) if call)
    for layer in dict.fromkeys(shared):
        rows.append(_cells("a batch normalization for each call", None, layer, "not predicted"))
    return Result(rows, "Predicted after training anew: the lowest ratio of real / remembered variance")


_MOVED = "noise after the last batch normalization"
_TWICE = "closed form: of m values, BN remembers 1 - 1 / m of the variance"


def _moved(model, variables, batches, predict, call):
    x = batches.inputs(batches.first)
    moved = surgery.move_to_last_bn(model, x, variables=variables, **call)
    return None if moved is model else _row(_MOVED, predict(moved))


def _weakened(model, layers, ratio, predict):
    """Noise of the largest s2 that keeps the accepted ratio; the variance it adds is proportional to s2."""
    factor = 1.0
    for _ in range(_TRIES):
        factor *= 0.98 * (1 / ACCEPTED - 1) / (1 / ratio - 1)
        weaker = _weaker(layers, factor)
        if not weaker:
            raise DropbnError("No noise has an amount that surgery could lower.")
        amounts = {name: law.amount for name, law in weaker.items()}
        row = _row(_words(weaker), predict(surgery.with_rates(model, amounts)))
        if (ratio := row["ratio"]) >= ACCEPTED:
            break
    return row


def _in_twice_the_batch(predicted, sizes):
    """The shift where BN remembers 1 - 1 / 2m of the variance instead of 1 - 1 / m."""

    def row(old):
        few = 1 / sizes.get(old["layer"].partition("[")[0], math.inf)
        return old | {"ratio": old["ratio"] * (1 - few) / (1 - few / 2)}

    return Shift([*map(row, predicted.rows)])


def _weaker(layers, factor):
    """Noise -> its law with an s2 that is `factor` times as large."""
    found = {}
    for path in layers.switched_noises:
        noise = layers.noises[path].layer
        if isinstance(noise, Noise) and noise.amount and noise.s2:
            is_rate = math.isclose(laws.Dropout(noise.amount).s2, noise.s2, rel_tol=1e-6)
            found[name_of(path)] = (laws.Dropout if is_rate else laws.Uout).of_s2(factor * noise.s2)
    return found


def _words(weaker):
    amounts = " and ".join(sorted({f"{law.amount:.2g}" for law in weaker.values()}))
    kinds = {type(law) for law in weaker.values()}
    what = "rate" if kinds == {laws.Dropout} else "beta" if kinds == {laws.Uout} else "amount"
    betas = sorted({f"{laws.Uout.of_s2(law.s2).amount:.2g}" for law in weaker.values() if law.s2 <= 1 / 3})
    same = f", or Uout with beta {' and '.join(betas)}" if betas and what == "rate" else ""
    return f"noise of {what} {amounts}{same}"


def _row(change, found, note=""):
    worst = min(found.rows, key=lambda row: row["ratio"])
    return _cells(change, worst["ratio"], worst["layer"], note)


def _cells(change, ratio, layer, note=""):
    return {"change": change, "ratio": ratio, "layer": layer, "note": note}
