"""Noises as Linen modules: `y = x * m` with `E[m] = 1` and `Var[m] = s2`, and alpha dropout, `y = m x + n`.

`dropbn.nn.laws` defines m and s2 of each noise; the files here draw m:

- `base`: when noise is drawn, and from which key.
- `dropout`, `continuous`, `alpha`: Dropout; GaussianDropout and Uout; AlphaDropout. Every position has a draw
  of its own, or shares it along `broadcast_dims`.
- `shared`: SpatialDropout, StochasticDepth and DropBlock, whose positions share draws of dropout's m.

Each class is a drop-in for `flax.linen.Dropout`: the same `rngs={'dropout': key}`, `deterministic` and
`rng=`. The classes are imported from here: `noise.Dropout(0.1)`.

The amount (`rate` or `beta`) may be a traced scalar, so that one compiled step serves every amount. A traced
amount cannot be checked: each class says what one outside its range does.

Uniform and normal draws are float32 whatever the input's dtype and `jax_enable_x64`; the output has the
input's dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

from dropbn.nn import laws
from dropbn.nn.noise.alpha import AlphaDropout
from dropbn.nn.noise.base import Multiplicative, Noise, OfLaw
from dropbn.nn.noise.continuous import GaussianDropout, Uout
from dropbn.nn.noise.dropout import Dropout
from dropbn.nn.noise.shared import DropBlock, SharedDropout, SpatialDropout, StochasticDepth

__all__ = [
    "KINDS",
    "AlphaDropout",
    "DropBlock",
    "Dropout",
    "GaussianDropout",
    "Multiplicative",
    "Noise",
    "OfLaw",
    "SharedDropout",
    "SpatialDropout",
    "StochasticDepth",
    "Uout",
    "create",
]

KINDS: dict[str, type[Noise]] = {
    "dropout": Dropout,
    "gaussian": GaussianDropout,
    "uout": Uout,
    "spatial": SpatialDropout,
    "stochastic_depth": StochasticDepth,
    "dropblock": DropBlock,
    "alpha": AlphaDropout,
}


def create(config: Any) -> Callable[..., Noise]:
    """A function `make(amount, name=...)` that builds the noise of a config; its rate or beta may be traced.

    Args:
      config: `config.model.noise`, whose kind, `block_size`, `scale_at` and `restore` are used.
    """
    own = {
        field: config[field]
        for field, (kind, absent) in laws.OWN_FIELDS.items()
        if kind == config.kind and config[field] != absent
    }
    return functools.partial(KINDS[config.kind], **own)
