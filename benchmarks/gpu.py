"""Training on one GPU against PyTorch: python -m benchmarks.gpu

bfloat16, images on the device, batches as `NETWORKS` says: WRN-28-10, PreResNet-110 (bottlenecks) and, with
224 pixels, ResNet-50. dropbn takes `STEPS` steps in one dispatch (scan) or one at a time, with threefry or
with rbg keys; PyTorch runs in channels_last under autocast with torch.compile. Also the share of the measured
peak of a bfloat16 matrix product, and several members of a study in one program (vmap).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import networks, side_by_side
from benchmarks.side_by_side import Entrant, Row, Spread
from configs import base
from dropbn import cost, doorway, models, steps

NETWORKS = {
    "WRN-28-10": networks.Settings("wrn", 28, 160, 0.3, 256, "bfloat16"),
    "PreResNet-110": networks.Settings("preresnet", 110, 16, 0.3, 256, "bfloat16", bottleneck=True),
    "ResNet-50": None,
}
STEPS, ROUNDS, MEMBERS = 10, 7, 8
RESNET_BATCH = 128
TARGET = 1.2


def rows() -> list[Row]:
    """Images a second of every entrant, or why there are none."""
    if not side_by_side.has_accelerator():
        return [Row(name, "not run: no GPU", f"at least {TARGET:g} times PyTorch") for name in NETWORKS]
    found = []
    for name, settings in NETWORKS.items():
        entrants = [
            Entrant(f"dropbn, {'scan' if scan else 'steps'}, {keys}", dropbn, (settings, scan, keys))
            for scan in (False, True)
            for keys in ("threefry2x32", "rbg")
        ]
        if side_by_side.has_torch():
            entrants.append(Entrant("PyTorch compiled", torch, (settings,)))
        if settings and settings.depth == 110:
            entrants.append(Entrant(f"dropbn, {MEMBERS} members, vmap", members, (settings,)))
        for entrant in entrants:  # Each alone, because each reserves most of the device's memory.
            seconds, facts = side_by_side.race([entrant], ROUNDS)
            found.append((name, entrant.name, seconds[entrant.name], facts[entrant.name]))
    return _rows(found)


def _rows(found):
    made = []
    for name in NETWORKS:
        of_network = {who: (seconds, facts) for which, who, seconds, facts in found if which == name}
        rates = {who: facts["images"] / seconds for who, (seconds, facts) in of_network.items()}
        for who, rate in rates.items():
            facts = of_network[who][1]
            peak = ""
            if "flops" in facts:
                peak = (
                    f", {100 * np.median(rate) * facts['flops'] / facts['peak']:.0f} % of a product's speed"
                )
            made.append(Row(f"{name}: {who}", f"{side_by_side.spread(rate)} images/s{peak}"))
        if "PyTorch compiled" in rates:
            ours = {who: rate for who, rate in rates.items() if "members" not in who and "dropbn" in who}
            best = max(ours, key=lambda who: np.median(ours[who]))
            theirs = np.quantile(rates["PyTorch compiled"], (0.75, 0.5, 0.25))
            ratio = Spread(*(np.quantile(ours[best], (0.25, 0.5, 0.75)) / theirs))
            made.append(side_by_side.at_least(f"{name}: {best} / PyTorch compiled", ratio, TARGET))
    return made


def _ours(settings):
    """(step, state, batch) of dropbn; `settings` None is ResNet-50."""
    if settings is not None:
        step, state = networks.ours(settings)
        return step, state, networks.images(settings.batch_size)
    config = base.get_config().model
    config.update({"name": "resnet_imagenet", "depth": 50, "width": 64, "num_classes": 1000})
    config.dtype = "bfloat16"
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    state = steps.create_state(models.create(config), tx, 0, (224, 224, 3))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(RESNET_BATCH, 224, 224, 3)).astype(np.float32),
        "label": np.arange(RESNET_BATCH) % 1000,
    }

    def step(state, batch):
        hyper = steps.Hyper(jnp.int32(0), 0.0, 1.0)
        return steps.train_step(state, batch, hyper, build=lambda _: models.create(config), tx=tx)

    return step, state, batch


def dropbn(settings, scan: bool, keys: str):
    """Entrant: `STEPS` of dropbn's training steps."""
    jax.config.update("jax_default_prng_impl", keys)
    doorway.prepare()
    step, state, batch = _ours(settings)
    batch = jax.device_put(batch)
    number = len(batch["label"])
    facts = {"images": STEPS * number, "flops": cost.flops(step, state, batch) / number, "peak": _peak()}
    if scan:

        @functools.partial(jax.jit, donate_argnums=0)
        def several(state, batch):
            return jax.lax.scan(lambda state, _: step(state, batch), state, length=STEPS)

        def run():
            nonlocal state
            state, sums = several(state, batch)
            jax.block_until_ready((state, sums))

        return run, facts
    step = jax.jit(step, donate_argnums=0)

    def run():
        nonlocal state
        for _ in range(STEPS):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))

    return run, facts


def members(settings):
    """Entrant: `MEMBERS` networks trained by one program on the same batches."""
    doorway.prepare()
    step, state, batch = _ours(settings)
    state = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * MEMBERS), state)
    step, batch = jax.jit(jax.vmap(step, (0, None)), donate_argnums=0), jax.device_put(batch)

    def run():
        nonlocal state
        for _ in range(STEPS):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))

    return run, {"images": MEMBERS * STEPS * settings.batch_size}


def torch(settings):
    """Entrant: `STEPS` steps of PyTorch with torch.compile."""
    import torch as library

    library.backends.cudnn.benchmark = True
    if settings is None:
        step, number = _torch_resnet(), RESNET_BATCH
    else:
        step, number = networks.torch_step(settings, "cuda", compiled=True)[0], settings.batch_size

    def run():
        for _ in range(STEPS):
            step()
        library.cuda.synchronize()

    return run, {"images": STEPS * number}


def _torch_resnet():
    import torch as library
    import torchvision

    network = torchvision.models.resnet50().to("cuda", memory_format=library.channels_last)
    compiled = library.compile(network)
    optimizer = library.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x = library.randn(RESNET_BATCH, 3, 224, 224, device="cuda").to(memory_format=library.channels_last)
    label = library.arange(RESNET_BATCH, device="cuda") % 1000

    def step():
        optimizer.zero_grad(set_to_none=True)
        with library.autocast("cuda", library.bfloat16):
            loss = library.nn.functional.cross_entropy(compiled(x), label)
        loss.backward()
        optimizer.step()

    return step


def _peak():
    """Operations a second of a bfloat16 product of 8192 x 8192 matrices."""
    a = jnp.ones((8192, 8192), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    seconds = side_by_side.timed(lambda: jax.block_until_ready([product(a, a) for _ in range(20)]))
    return 20 * 2 * 8192**3 / seconds


if __name__ == "__main__":
    side_by_side.show(rows())
