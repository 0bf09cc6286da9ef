"""What is known of a noise."""

from typing import Any, NamedTuple

import numpy as np

from dropbn.diagnose import registry
from dropbn.nn import laws


class Noise(NamedTuple):
    """A noise of the model.

    Attributes:
      amount: its rate or beta; None if that is traced or the type has none.
      affine: the moments of y = m x + n; None if they are unknown or infinite.
      is_positive: m >= 0 and n = 0, so that it commutes with ReLU (Kim et al. 2023, Proposition 1).
      is_shared: one m serves several positions, as with `broadcast_dims`.
      is_opaque: its output may be more than m x + n, such as that of attention.
      is_drawn: the model draws it by hand; no layer is registered.
      per_example: it is drawn by hand, at most one number for each example, as drop path does.
    """

    amount: float | None
    affine: laws.Affine | None
    is_positive: bool
    is_shared: bool
    is_opaque: bool = False
    is_drawn: bool = False
    per_example: bool = False

    @property
    def s2(self) -> float | None:
        """Var[m] of a noise that multiplies by m with E[m] = 1; None of another."""
        affine = self.affine
        return affine.var_m if affine and affine == laws.Affine(var_m=affine.var_m) else None


def noise_of(module: Any) -> Noise:
    """The noise that a module of a registered type is."""
    amount = registry.amount_of(module)
    amount = float(amount) if laws.is_number(amount) else None
    affine, law = None, registry.law_of(module)
    if amount is not None and not getattr(module, "restore", ""):
        affine = laws.Affine(*map(float, law.affine)) if law and np.all(np.isfinite(law.affine)) else None
    shared = bool(getattr(module, "is_shared", getattr(module, "broadcast_dims", ())))
    is_positive = isinstance(law, (laws.Dropout, laws.Uout))
    return Noise(amount, affine, is_positive, shared, is_opaque=not registry.is_affine(module))
