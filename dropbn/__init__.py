"""dropbn: what happens when dropout meets batch normalization, in JAX and Flax Linen.

- `dropbn.nn`: layers for dropout and batch normalization.
- `dropbn.models`: the papers' networks.
- `dropbn.diagnose`: the variance shift of any Flax Linen model, measured, explained and repaired.
- `dropbn.data`, `dropbn.train`, `dropbn.study`, `dropbn.page`: behind `train.py`, `eval.py` and `dropbn`.

Import the module you need: ``from dropbn.nn import noise``, ``from dropbn.diagnose import shift``. This file
imports nothing heavy.
"""

from dropbn.errors import DropbnError

__all__ = ["DropbnError"]
__version__ = "0.1.0"
