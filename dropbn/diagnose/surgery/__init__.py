"""Changes the noise, or its place, in a Linen or NNX model that somebody else wrote.

>>> import flax.linen as nn
>>> from dropbn.diagnose import surgery
>>> from dropbn.nn import noise
>>> model = nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=False), nn.BatchNorm(False)])
>>> gentle = surgery.swap_noise(model, to=noise.Uout(0.1))
>>> behind = surgery.move(gentle, {"layers_1": "layers_2"})

The result has the model's call and variables, so a checkpoint of one loads into the other. It may be operated
on again, and `dropbn.diagnose.modes` switches its noise.

A noise is a layer whose type is in `registry.NOISES`; its name is its path in the model, joined by "/". A
noise with neither a `rate` nor a `beta` (attention, a random activation) can be turned off and is left alone
otherwise. A noise that only training reaches is found if the model's flag has one of the names that
`dropbn.diagnose.modes` sets.

The result of a Linen model has no methods but `__call__`. A block under `nn.jit` is traced anew at every
call: put the whole step under `jax.jit`. The result of an NNX model is an edited copy of its class. Its
inputs are not known, so a module is a noise that is drawn by hand if it is one alone, on an array.
"""

from dropbn.diagnose.surgery.edits import move, move_to_last_bn, swap_noise, with_rates, without_noise

__all__ = ["move", "move_to_last_bn", "swap_noise", "with_rates", "without_noise"]
