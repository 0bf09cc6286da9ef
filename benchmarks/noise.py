"""What noise in every block costs a training step: python -m benchmarks.noise

The step of PreResNet-20 with noise, in batches of 128 on one device, alternates with the same step without
noise. Memory is what XLA's compiled program reserves beside its arguments. It is compared with a step of the
same network that has `flax.linen.Dropout` in place of the noise.
"""

import contextlib
from unittest import mock

import flax.linen as nn
import jax

from benchmarks import networks, side_by_side, train_step
from benchmarks.side_by_side import Row
from dropbn import runtime
from dropbn.nn import noise

AMOUNTS = {"dropout": 0.3, "gaussian": 0.3, "uout": 0.5}
ROUNDS, STEPS = 7, 1
TARGET = {"cpu": 1.08, "gpu": 1.03}


def rows() -> list[Row]:
    """Time and memory of a step with each noise, relative to none and to `flax.linen.Dropout`."""
    runtime.prepare()
    settings = networks.PRERESNET
    kinds = {kind: settings._replace(kind=kind, rate=amount) for kind, amount in AMOUNTS.items()}
    runs, memory = {"none": _run(settings)}, {}
    for kind, of_kind in kinds.items():
        runs[kind], memory[kind] = _run(of_kind), _memory(of_kind)
    seconds = side_by_side.turns(runs, ROUNDS)
    platform = jax.default_backend()
    found = [
        side_by_side.at_most(
            f"time with {kind} {AMOUNTS[kind]:g} / without noise",
            side_by_side.spread(seconds[kind] / seconds["none"]),
            TARGET.get(platform, TARGET["gpu"]),
        )
        for kind in kinds
    ]
    stock = _memory(kinds["dropout"], stock=True)
    for kind, used in memory.items():
        found.append(
            Row(
                f"memory of a step with {kind} / with flax.linen.Dropout",
                f"{used / stock:.3f} ({used / 1e6:.0f} / {stock / 1e6:.0f} MB)",
                "at most 1",
                used <= stock,
            )
        )
    return found


def _run(settings):
    run, _ = train_step.dropbn(settings, 1, STEPS)
    return run


def _memory(settings, stock=False):
    """Bytes of temporary memory of a step."""
    patch = mock.patch.object(noise.Dropout, "apply_noise", _stock) if stock else contextlib.nullcontext()
    with patch:
        step, state = networks.ours(settings)
        lowered = jax.jit(step, donate_argnums=0).lower(state, networks.images(settings.batch_size))
        return lowered.compile().memory_analysis().temp_size_in_bytes


def _stock(self, inputs, rng, shape):
    dropout = nn.Dropout(AMOUNTS["dropout"], deterministic=False, parent=None)
    return dropout.apply({}, inputs, rng=rng)


if __name__ == "__main__":
    side_by_side.show(rows())
