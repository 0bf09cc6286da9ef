"""dropbn: what happens when dropout meets batch normalization, in JAX and Flax Linen.

Import the module you need, for example ``from dropbn import noise, order, shift``.
This file imports nothing heavy.
"""

from dropbn.errors import DropbnError

__all__ = ["DropbnError"]
__version__ = "0.1.0"
