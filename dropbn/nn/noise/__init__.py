"""Multiplicative noise as Linen modules: `y = x * m` with `E[m] = 1` and `Var[m] = s2`.

`dropbn.nn.laws` defines m and s2 of each noise; this file draws m. Each class is a drop-in for
`flax.linen.Dropout`: the same `rngs={'dropout': key}`, `deterministic`, `broadcast_dims` and `rng=`.

The amount (`rate` or `beta`) may be a traced scalar, so that one compiled step serves every amount. A traced
amount cannot be checked: each class says what one outside its range does.

Uniform and normal draws are float32 whatever the input's dtype and `jax_enable_x64`; the product has the
input's dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

from dropbn.nn.noise.base import Multiplicative, Noise
from dropbn.nn.noise.continuous import GaussianDropout, Uout
from dropbn.nn.noise.dropout import Dropout

__all__ = ["KINDS", "Dropout", "GaussianDropout", "Multiplicative", "Noise", "Uout", "create"]

KINDS: dict[str, type[Noise]] = {"dropout": Dropout, "gaussian": GaussianDropout, "uout": Uout}


def create(config: Any) -> Callable[..., Noise]:
    """A function `make(amount, name=...)` that builds the noise of a config; its rate or beta may be traced.

    Args:
      config: has `kind`, and `scale_at` and `restore` for dropout (`config.model.noise`).
    """
    own = {"scale_at": config.scale_at, "restore": config.restore} if config.kind == "dropout" else {}
    return functools.partial(KINDS[config.kind], **own)
