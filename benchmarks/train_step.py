"""Training steps on CPU, side by side: python -m benchmarks.train_step

PreResNet-20 and WRN-16-4 train in float32 on batches of 128 images of 32 x 32 pixels, without noise and with
dropout 0.3 in every block. dropbn runs the step of its training loop, on one device and on one simulated
device per core. Every entrant gets one batch that is already in memory; PyTorch's is in channels_last. Ratios
compare images per second, dropbn / rival, round by round. PreResNet-20's rivals are started anew three times.

"One core" is the processor time of one thread on one core. It stays stable on a machine that others use too.
With "all cores", threads wait for one another and therefore lose more time to other programs than those
programs take. If other programs were running when a comparison began, its ratio is not judged.
"""

import os

import jax
import numpy as np

from benchmarks import networks, side_by_side
from benchmarks.side_by_side import Entrant, Row
from dropbn import runtime
from dropbn.study import cost

NETWORKS = (networks.PRERESNET, networks.WRN)
RATES = (0.0, 0.3)
ROUNDS, STARTS, STEPS = {"preresnet": 5, "wrn": 2}, {"preresnet": 3, "wrn": 1}, {"preresnet": 1, "wrn": 1}
_IDLE = 0.1  # The share of all cores up to which nobody else is running.
# Of dropbn to PyTorch eager: without and with dropout the same floor, and what is aimed at.
TARGET, AIMS = 0.6, {0.0: 0.8, 0.3: 1.0}


def devices(number: int) -> dict[str, str]:
    """The environment of a process with so many simulated CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def dropbn(settings: networks.Settings, number: int, steps: int = 1):
    """Entrant: `steps` of dropbn's training steps on `number` devices."""
    runtime.prepare()
    step, state, batch = networks.ours_on_devices(settings, number)
    facts = {"parameters": networks.size(state.params) // number}

    def run():
        nonlocal state
        for _ in range(steps):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))

    return run, facts


def flax(settings: networks.Settings, steps: int = 1):
    """Entrant: plain Flax under jit."""
    step, state = networks.plain(settings)
    step, batch = jax.jit(step, donate_argnums=0), jax.device_put(networks.images(settings.batch_size))
    facts = {"parameters": networks.size(state[1])}

    def run():
        nonlocal state
        for _ in range(steps):
            state, loss = step(state, batch)
        jax.block_until_ready((state, loss))

    return run, facts


def torch(settings: networks.Settings, compiled: bool = False, steps: int = 1):
    """Entrant: PyTorch in channels_last, eager or compiled."""
    step, parameters = networks.torch_step(settings, compiled=compiled)

    def run():
        for _ in range(steps):
            loss = step()
        loss.item()

    return run, {"parameters": parameters}


def entrants(settings: networks.Settings, steps: int) -> list[Entrant]:
    """Who trains a network."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Entrant("dropbn, 1 device", dropbn, (settings, 1, steps), devices(1)),
        Entrant("plain Flax", flax, (settings, steps), devices(1)),
    ]
    if cores > 1 and settings.batch_size % cores == 0:
        found.insert(1, Entrant(f"dropbn, {cores} devices", dropbn, (settings, cores, steps), devices(cores)))
    if side_by_side.has_torch():
        found.append(Entrant("PyTorch eager", torch, (settings, False, steps)))
        if settings.name == "preresnet" and settings.rate:
            found.append(Entrant("PyTorch compiled", torch, (settings, True, steps)))
    return found


def rows() -> list[Row]:
    """Images a second of every entrant, and the ratios."""
    found = []
    for settings in NETWORKS:
        found.append(_floor(settings))
        for rate in RATES:
            found += _compared(settings._replace(rate=rate))
    return found


def _compared(settings):
    return _raced(settings, one_core=True) + _raced(settings, one_core=False)


def _raced(settings, one_core):
    steps, busy = STEPS[settings.name], side_by_side.others()
    where = "one core" if one_core else "all cores"
    label = f"{settings.label}, {f'dropout {settings.rate:g}' if settings.rate else 'no noise'}, {where}"
    racing = entrants(settings, steps)
    if one_core:
        left_out = ("devices", "compiled")
        racing = [e._replace(one_core=True) for e in racing if not e.name.endswith(left_out)]
    seconds, facts = side_by_side.race(racing, ROUNDS[settings.name], STARTS[settings.name])
    sizes = {name: of_entrant["parameters"] for name, of_entrant in facts.items()}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"The networks differ: {sizes} parameters.")
    images = settings.batch_size * steps
    found = [
        Row(f"{label}: {name}", f"{side_by_side.spread(images / of_entrant)} images/s")
        for name, of_entrant in seconds.items()
    ]
    best = min((name for name in seconds if "dropbn" in name), key=lambda name: np.median(seconds[name]))
    for rival in (name for name in seconds if "dropbn" not in name):
        ratio = side_by_side.spread(seconds[rival] / seconds[best])
        what = f"{label}: {best} / {rival}"
        if "PyTorch" in rival and not one_core and busy > _IDLE:
            found.append(Row(what, f"not judged: others used {100 * busy:.0f} % of the cores"))
        elif rival == "PyTorch eager":
            aim = AIMS[settings.rate]
            short = "" if ratio.median >= aim else ", short of the aim"
            words = f"above {TARGET:g}, the aim {aim:g}"
            found.append(Row(what, f"{ratio}{short}", words, bool(ratio.median >= TARGET)))
        else:
            found.append(Row(what, str(ratio)))
    if not side_by_side.has_torch():
        found.append(
            Row(f"{label}: dropbn / PyTorch eager", "not run: pip install torch", f"above {TARGET:g}")
        )
    return found


def _floor(settings):
    """What a step computes and moves at least, from shapes alone."""
    step, state = networks.ours(settings)
    batch = networks.images(settings.batch_size)
    operations = cost.flops(step, state, batch)
    # Written and read forward, read and written backward, in float32.
    moved = 4 * 4 * settings.batch_size * _activations(settings)
    return Row(
        f"{settings.label}: a step of {settings.batch_size}",
        f"{operations / 1e9:.1f} GFLOP in convolutions and products, {moved / 1e9:.2f} GB for their outputs, "
        "moved four times",
    )


def _activations(settings):
    """Values of an image's activations after its convolutions."""
    side, found = 32, 32 * 32 * 16
    for channels, stride in settings.stages:
        side //= stride
        found += 2 * side * side * channels
    return found


if __name__ == "__main__":
    side_by_side.show(rows())
