"""Change the noise, or its place, in a Linen model one did not write.

>>> import flax.linen as nn
>>> from dropbn.diagnose import surgery
>>> from dropbn.nn import noise
>>> model = nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=False), nn.BatchNorm(False)])
>>> gentle = surgery.swap_noise(model, to=noise.Uout(0.1))
>>> behind = surgery.move(gentle, {"layers_1": "layers_2"})

The result is called as the model is and has its variables, so a checkpoint of the one loads into the other;
it may be operated on again, and `dropbn.diagnose.modes` switches its noise. Noises are what `registry.NOISES`
holds, named by their path in the model, joined by "/". One with neither a `rate` nor a `beta` (attention, a
random activation) can be turned off, and is left alone otherwise. A name that only training reaches is known
if the model's flag has one of the names that `dropbn.diagnose.modes` sets. Methods other than `__call__` are
not offered. A block under `nn.jit` is traced anew at every call: put the whole step under `jax.jit`.
"""

from dropbn.diagnose.surgery.edits import move, move_to_last_bn, swap_noise, with_rates, without_noise

__all__ = ["move", "move_to_last_bn", "swap_noise", "with_rates", "without_noise"]
